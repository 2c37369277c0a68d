//! Coming up, and going down.

use core::time::Duration;

use xen_evtchn::{Channel, EventChannels};
use xen_gnttab::{Access, GrantTable, GrantedPage};
use xen_hypercall::{Platform, Wait};
use xen_ring::Front;
use xen_xenstore::Xenstore;
use xen_xenstore::xenbus::{BackendReady, Connected, Frontend, Published, XenbusState};

use crate::abi::{ABI, Blkif, RING_SLOTS};
use crate::geometry::Geometry;
use crate::slots::Slots;
use crate::{BlkFront, Error, State, Stats};

/// What can be chosen about a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Requests that can be under way, 1 to 32. Each takes 11 pages for as long as the disk is connected.
    pub requests: usize,
    /// How long the blocking calls wait for the next response before they fail.
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { requests: RING_SLOTS, timeout: Duration::from_secs(30) }
    }
}

/// What the backend reaches of us.
struct Shared<'x, P: Platform> {
    ring: Front<Blkif, GrantedPage<'x, P>>,
    channel: Channel<'x, P>,
    slots: Slots<'x, P>,
}

impl<'x, P: Platform + Wait> BlkFront<'x, P> {
    /// Connects to the disk of this number, as in `device/vbd/51712` (`xvda`), with the default [`Config`].
    ///
    /// # Errors
    /// The handshake's, also when the backend is not ready by `deadline`; [`Error::BadNode`] for a disk that cannot
    /// be; [`Error::Grant`] and [`Error::Event`].
    pub fn connect(
        xs: &mut Xenstore<'x, P>,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
        deadline: Duration,
    ) -> Result<Self, Error> {
        Self::connect_with(xs, events, grants, index, deadline, Config::default())
    }

    /// Connects to the disk with the lowest number.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; otherwise as [`connect`](Self::connect).
    pub fn connect_first(
        xs: &mut Xenstore<'x, P>,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let mut first: Option<u32> = None;
        let listed = xs.directory("device/vbd", |name| {
            if let Ok(index) = name.parse() {
                first = Some(first.map_or(index, |first| first.min(index)));
            }
        });
        match listed {
            Err(error) if error.is_not_found() => return Err(Error::NoDevice),
            other => other?,
        }
        Self::connect(xs, events, grants, first.ok_or(Error::NoDevice)?, deadline)
    }

    /// [`connect`](Self::connect) with another [`Config`].
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_with(
        xs: &mut Xenstore<'x, P>,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
        deadline: Duration,
        config: Config,
    ) -> Result<Self, Error> {
        let device = Frontend::open(xs, "vbd", index, deadline)?.wait_for_backend(xs, deadline)?;
        let shared = match share(&device, events, grants, config) {
            Ok(shared) => shared,
            Err(error) => {
                // The first error says more than one on the way out.
                let _ = device.abandon(xs);
                return Err(error);
            }
        };
        let (device, shared) = publish(xs, device, shared)?;
        let device = wait_connected(xs, device, deadline)?;
        let geometry = match Geometry::read(xs, &device) {
            Ok(geometry) => geometry,
            Err(error) => {
                let _ = device.close(xs, deadline);
                return Err(error);
            }
        };
        device.switch(xs, XenbusState::CONNECTED)?;
        let Shared { ring, channel, slots } = shared;
        Ok(Self {
            device,
            events,
            grants,
            channel,
            ring,
            slots,
            geometry,
            config,
            state: State::Connected,
            stats: Stats::default(),
        })
    }

    /// Ends the disk: waits for what is under way, tells the backend, and waits until it has let go.
    ///
    /// Whatever the outcome is, the disk is closed. Pages that the backend still uses stay in the grant table's
    /// quarantine. Nothing is flushed.
    ///
    /// # Errors
    /// The handshake's, when the backend did not follow by `deadline`.
    pub fn close(mut self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> Result<(), Error> {
        if matches!(self.state, State::Connected | State::Closing) {
            // Requests that are not answered are lost; the backend, not they, decides how closing goes on.
            let _ = self.drain(deadline);
        }
        let Self { device, ring, channel, slots, .. } = self;
        let closed = device.close(xs, deadline);
        // Only now: before, the backend had every right to the pages.
        drop((ring, slots, channel));
        Ok(closed?)
    }
}

fn share<'x, P: Platform>(
    device: &Frontend<BackendReady>,
    events: &'x EventChannels<P>,
    grants: &'x GrantTable<P>,
    config: Config,
) -> Result<Shared<'x, P>, Error> {
    let backend = device.backend_id();
    let page = grants.share(backend, Access::ReadWrite)?;
    // A page is large enough; `abi` has that checked.
    let ring = Front::init(page).map_err(|error| Error::Broken(crate::Violation::Ring(error)))?;
    let slots = Slots::new(grants, backend, config.requests.clamp(1, RING_SLOTS))?;
    Ok(Shared { ring, channel: events.alloc_unbound(backend)?, slots })
}

fn publish<'x, P: Platform + Wait>(
    xs: &mut Xenstore<'x, P>,
    device: Frontend<BackendReady>,
    mut shared: Shared<'x, P>,
) -> Result<(Frontend<Published>, Shared<'x, P>), Error> {
    let (watch, port) = (*device.watch(), shared.channel.port());
    let gref = shared.ring.backing().gref();
    let published = device.publish(xs, XenbusState::INITIALISED, |transaction, path| {
        transaction.write_display(&path.join("ring-ref")?, gref.0)?;
        transaction.write_display(&path.join("event-channel")?, port.0)?;
        transaction.write_display(&path.join("protocol")?, ABI)?;
        // A backend may tell only later whether it keeps pages mapped, when it is too late for us to tell, so we
        // always do. The protocol allows that: we use the same pages again and again either way.
        transaction.write_display(&path.join("feature-persistent")?, 1)
    });
    match published {
        Ok(device) => Ok((device, shared)),
        Err(error) => {
            let _ = xs.unwatch(watch);
            Err(error.into())
        }
    }
}

fn wait_connected<P: Platform + Wait>(
    xs: &mut Xenstore<'_, P>,
    device: Frontend<Published>,
    deadline: Duration,
) -> Result<Frontend<Connected>, Error> {
    let (watch, state) = (*device.watch(), device.frontend_path().join("state")?);
    device.wait_connected(xs, deadline).map_err(|error| {
        // The backend must not go on with pages that are about to be taken away.
        let _ = xs.unwatch(watch);
        let _ = xs.write_display(&state, XenbusState::CLOSED.0);
        error.into()
    })
}
