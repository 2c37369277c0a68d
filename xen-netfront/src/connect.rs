//! The handshake: what is agreed on, and where.

use core::time::Duration;

use xen_evtchn::EventChannels;
use xen_gnttab::{Access, GrantTable};
use xen_hypercall::{Platform, Wait};
use xen_ring::Front;
use xen_xenstore::Xenstore;
use xen_xenstore::xenbus::{BackendReady, Frontend, XenbusState};

use crate::error::Violation;
use crate::pool::Pool;
use crate::{Error, Mac, NetFront};

/// The most that a frame carries without feature-sg, in bytes, beside its header; and the least of IPv4.
const MTU: core::ops::RangeInclusive<u32> = 68..=1500;

impl<'x, P: Platform + Wait> NetFront<'x, P> {
    /// Connects network device `index` (`device/vif/<index>`), waiting for its backend until `deadline`, a time of
    /// the platform's clock.
    ///
    /// # Errors
    /// [`Error::Store`] when there is no such device or the backend does not come; [`Error::NoRxCopy`],
    /// [`Error::NoMac`]; [`Error::Grant`] and [`Error::Event`] when resources are short. Nothing is left behind.
    pub fn connect(
        xs: &mut Xenstore<'x, P>,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let device = Frontend::open(xs, "vif", index, deadline)?.wait_for_backend(xs, deadline)?;
        let backend = device.backend_id();
        let mac: Mac = match device.read_frontend(xs, "mac") {
            Ok(Some(mac)) => mac,
            Ok(None) | Err(xen_xenstore::Error::BadValue) => return give_up(device, xs, Error::NoMac),
            Err(error) => return give_up(device, xs, error.into()),
        };
        match device.read_backend::<P, u32>(xs, "feature-rx-copy") {
            Ok(Some(1)) => {}
            Ok(_) | Err(xen_xenstore::Error::BadValue) => return give_up(device, xs, Error::NoRxCopy),
            Err(error) => return give_up(device, xs, error.into()),
        }
        let mtu = device.read_frontend(xs, "mtu").ok().flatten().filter(|mtu| MTU.contains(mtu));
        let parts = || -> Result<_, Error> {
            let ring = |access| grants.share(backend, access);
            let tx = Front::init(ring(Access::ReadWrite)?).map_err(|e| Error::Broken(Violation::Ring(e)))?;
            let rx = Front::init(ring(Access::ReadWrite)?).map_err(|e| Error::Broken(Violation::Ring(e)))?;
            let tx_pool = Pool::new(grants, backend, Access::ReadOnly)?;
            let rx_pool = Pool::new(grants, backend, Access::ReadWrite)?;
            Ok((tx, rx, tx_pool, rx_pool, events.alloc_unbound(backend)?))
        };
        let (mut tx, mut rx, tx_pool, rx_pool, channel) = match parts() {
            Ok(parts) => parts,
            Err(error) => return give_up(device, xs, error),
        };
        let (tx_ref, rx_ref) = (tx.backing().gref(), rx.backing().gref());
        let watch = *device.watch();
        let published = device.publish(xs, XenbusState::CONNECTED, |transaction, path| {
            transaction.write_display(&path.join("tx-ring-ref")?, tx_ref.0)?;
            transaction.write_display(&path.join("rx-ring-ref")?, rx_ref.0)?;
            transaction.write_display(&path.join("event-channel")?, channel.port().0)?;
            // The backend copies into our pages, tells of each frame by the event channel, and fills in the
            // checksums of what it gives us: frames of its own domain come without otherwise, and a stack that
            // checks would drop them.
            transaction.write(&path.join("request-rx-copy")?, b"1")?;
            transaction.write(&path.join("feature-rx-notify")?, b"1")?;
            transaction.write(&path.join("feature-no-csum-offload")?, b"1")?;
            transaction.write(&path.join("feature-sg")?, b"0")
        });
        let device = match published {
            Ok(device) => device,
            Err(error) => {
                let _ = xs.unwatch(watch);
                return Err(error.into());
            }
        };
        let state = device.frontend_path().join("state")?;
        let device = match device.wait_connected(xs, deadline) {
            Ok(device) => device,
            Err(error) => {
                // The backend must not go on with pages that are about to be taken away.
                let _ = xs.unwatch(watch);
                let _ = xs.write_display(&state, XenbusState::CLOSED.0);
                return Err(error.into());
            }
        };
        let mut front =
            Self::new(device, channel, (tx, tx_pool), (rx, rx_pool), mac, mtu.unwrap_or(*MTU.end()));
        match front.refill().and_then(|()| front.flush()) {
            Ok(()) => Ok(front),
            Err(error) => {
                let _ = front.close(xs, deadline);
                Err(error)
            }
        }
    }
}

fn give_up<P: Platform + Wait, T>(
    device: Frontend<BackendReady>,
    xs: &mut Xenstore<'_, P>,
    error: Error,
) -> Result<T, Error> {
    // The first error says more than one of the way out.
    let _ = device.abandon(xs);
    Err(error)
}
