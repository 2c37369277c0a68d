//! Coming up.

use core::time::Duration;

use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::{Platform, Wait};
use xen_xenstore::Xenstore;
use xen_xenstore::xenbus::{BackendReady, Connected, Frontend, Published, XenbusState};

use crate::abi::RING_SLOTS;
use crate::features::Features;
use crate::ops::Ops;
use crate::pool::Pool;
use crate::transport::{Queues, Transport};
use crate::{BlkFront, Error, State, Stats};

/// What can be chosen about a disk. The default fits a guest with little memory and one virtual CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Operations that can be under way at once, whose results were not taken.
    pub requests: usize,
    /// Pages that data can be in at once, at least 11. They are made when they are needed for the first time, and stay
    /// for as long as the disk is connected.
    pub pages: usize,
    /// Pages of data in one request at most, as far as the backend takes more than 11 (`feature-max-indirect-segments`).
    pub segments: usize,
    /// Pages of each ring, a power of two up to 16, as far as the backend takes more than one: 32 requests in the first.
    pub ring_pages: usize,
    /// Rings, as far as the backend has more than one: Linux's serves each by a thread of its own.
    pub queues: usize,
    /// Tell the backend that it may keep pages mapped. Without, it maps and unmaps them for each request, and pages
    /// [lent](crate::Piece) to the disk can be had back for other uses.
    pub persistent: bool,
    /// How long the blocking calls wait for the next response before they fail.
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            requests: RING_SLOTS,
            pages: 288,
            segments: 256,
            ring_pages: 1,
            queues: 1,
            persistent: true,
            timeout: Duration::from_secs(30),
        }
    }
}

/// What is there only while a backend is connected.
pub(crate) struct Link<'x, P: Platform> {
    pub(crate) device: Frontend<Connected>,
    pub(crate) queues: Queues<'x, P>,
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
        let first = Self::first_index(xs)?.ok_or(Error::NoDevice)?;
        Self::connect(xs, events, grants, first, deadline)
    }

    /// The lowest number of a disk that the toolstack has given the domain (`device/vbd`); none when there is no disk.
    ///
    /// # Errors
    /// [`Error::Xenstore`] when xenstore cannot be asked.
    pub fn first_index(xs: &mut Xenstore<'_, P>) -> Result<Option<u32>, Error> {
        let mut first: Option<u32> = None;
        match xs.directory("device/vbd", |name| first = first.into_iter().chain(name.parse()).min()) {
            Err(error) if error.is_not_found() => Ok(None),
            listed => Ok(listed.map(|()| first)?),
        }
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
        let made = Pool::new(grants, device.backend_id(), config.pages)
            .and_then(|pool| Ok((pool, Ops::new(grants.platform(), config.requests)?)));
        let (pool, ops) = match made {
            Ok(made) => made,
            Err(error) => {
                // The first error says more than one on the way out.
                let _ = device.abandon(xs);
                return Err(error);
            }
        };
        let (link, features) = bring_up(xs, device, events, grants, &config, deadline)?;
        Ok(Self {
            link: Some(link),
            events,
            grants,
            index,
            pool,
            ops,
            features,
            config,
            state: State::Connected,
            stats: Stats::default(),
        })
    }
}

/// The handshake from a backend that is ready to a disk at work.
pub(crate) fn bring_up<'x, P: Platform + Wait>(
    xs: &mut Xenstore<'x, P>,
    device: Frontend<BackendReady>,
    events: &'x EventChannels<P>,
    grants: &'x GrantTable<P>,
    config: &Config,
    deadline: Duration,
) -> Result<(Link<'x, P>, Features), Error> {
    let made = Transport::choose(xs, &device, config).and_then(|transport| {
        let queues = transport.make(events, grants, device.backend_id())?;
        Ok((transport, queues))
    });
    let (transport, queues) = match made {
        Ok(made) => made,
        Err(error) => {
            let _ = device.abandon(xs);
            return Err(error);
        }
    };
    let device = transport.publish(xs, device, &queues, config.persistent)?;
    let device = wait_connected(xs, device, deadline)?;
    let features = match Features::read(xs, &device, transport.trusted) {
        Ok(features) => features,
        Err(error) => {
            let _ = device.close(xs, deadline);
            return Err(error);
        }
    };
    device.switch(xs, XenbusState::CONNECTED)?;
    Ok((Link { device, queues }, features))
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
