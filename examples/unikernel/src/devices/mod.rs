//! The application's network card and disk: netfront and blkfront, or nothing, as the image's features say.

#[cfg(feature = "disk")]
mod disk;
#[cfg(feature = "net")]
mod nic;

use crate::machine::{Events, Store};
use crate::platform::Owned;

#[cfg(feature = "disk")]
pub(crate) use disk::{Disk, Slot};
#[cfg(feature = "net")]
pub(crate) use nic::Nic;

#[cfg(not(feature = "net"))]
pub(crate) type Nic = webserver::Absent;
#[cfg(not(feature = "disk"))]
pub(crate) type Disk = webserver::Absent;
#[cfg(not(feature = "disk"))]
pub(crate) type Slot = webserver::Absent;

#[cfg(any(feature = "net", feature = "disk"))]
type Grants = &'static xen_gnttab::GrantTable<&'static crate::platform::Kernel>;

/// How long a device may take to connect.
#[cfg(any(feature = "net", feature = "disk", feature = "suspend"))]
pub(crate) const PATIENCE: core::time::Duration = core::time::Duration::from_secs(10);
/// How long a backend may take to let a device go.
#[cfg(any(feature = "net", feature = "disk"))]
const CLOSING: core::time::Duration = core::time::Duration::from_secs(5);

/// What was found to work with.
#[derive(Default)]
pub(crate) struct Devices {
    pub(crate) nic: Option<Nic>,
    pub(crate) disk: Option<Disk>,
    /// Where another disk may come.
    pub(crate) slot: Option<&'static Slot>,
    /// What the devices stand on, and a new domain has to have again.
    #[cfg(feature = "suspend")]
    pub(crate) part: Option<alloc::boxed::Box<dyn xen_hypercall::Restore>>,
}

/// Connects the devices that the domain has. What is missing or broken is reported and left out.
#[cfg(any(feature = "net", feature = "disk"))]
pub(crate) fn open(domain: Owned, store: Store, events: Events) -> Devices {
    use xen_hypercall::Wait;

    let kernel = *domain.platform();
    let mut devices = Devices::default();
    let grants: Grants = match xen_gnttab::GrantTable::new(domain) {
        Ok(grants) => crate::machine::leak(grants),
        Err(error) => {
            log::error!("no grant table, so no devices: {error}");
            return devices;
        }
    };
    #[cfg(feature = "suspend")]
    {
        devices.part = Some(alloc::boxed::Box::new(grants));
    }
    let deadline = kernel.now() + PATIENCE;
    // While its backend connects, so does the disk's.
    #[cfg(feature = "net")]
    let nic = nic::begin(store, events, grants, deadline);
    #[cfg(feature = "disk")]
    {
        let slot = crate::machine::leak(Slot::new(store, events, grants));
        devices.disk = slot.first(deadline);
        devices.slot = Some(slot);
    }
    #[cfg(feature = "net")]
    {
        devices.nic = nic.and_then(|nic| nic.finish(store, deadline));
    }
    devices
}

/// An image of the console alone has none.
#[cfg(not(any(feature = "net", feature = "disk")))]
pub(crate) fn open(_: Owned, _: Store, _: Events) -> Devices {
    Devices::default()
}
