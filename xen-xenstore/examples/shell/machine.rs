//! A machine whose store is worth looking at.

use xen_evtchn::EventChannels;
use xen_hypercall::DomId;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_xenstore::mock::MockXenstored;

pub(crate) const HOME: &str = "/local/domain/1";

pub(crate) struct Machine {
    pub(crate) xen: MockXen,
    pub(crate) store: MockXenstored,
    pub(crate) events: EventChannels<MockDomain>,
}

impl Machine {
    /// A guest with a disk and a network card, as `xl create` makes them.
    pub(crate) fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let xen = MockXen::new();
        xen_evtchn::mock::install(&xen);
        let store = MockXenstored::new(&xen);
        let guest = xen.domain(DomId(1));
        store.connect(&guest);
        for (kind, index, front, back) in [
            (
                "vbd",
                "51712",
                &[("virtual-device", "51712"), ("device-type", "disk")][..],
                &[("params", "/srv/disk.img"), ("mode", "w")][..],
            ),
            ("vif", "0", &[("mac", "00:16:3e:01:02:03")], &[("ip", "10.0.0.2"), ("bridge", "xenbr0")]),
        ] {
            let (device, backend) = (
                format!("{HOME}/device/{kind}/{index}"),
                format!("/local/domain/0/backend/{kind}/1/{index}"),
            );
            store.write(&device, "");
            store.set_permissions(&device, "n1\0r0");
            store.write(&backend, "");
            store.set_permissions(&backend, "n0\0r1");
            for (name, value) in
                front.iter().chain(&[("backend", &*backend), ("backend-id", "0"), ("state", "1")])
            {
                store.write(&format!("{device}/{name}"), value);
            }
            for (name, value) in
                back.iter().chain(&[("frontend", &*device), ("frontend-id", "1"), ("state", "2")])
            {
                store.write(&format!("{backend}/{name}"), value);
            }
        }
        let token = guest.boot()?;
        let events = EventChannels::new(&token)?;
        Ok(Self { xen, store, events })
    }
}
