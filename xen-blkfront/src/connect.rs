//! Coming up.

use core::fmt;
use core::time::Duration;

use xen_evtchn::{Deadline, EventChannels};
use xen_gnttab::GrantTable;
use xen_hypercall::{Platform, Wait};
use xen_xenstore::xenbus::{Connected, Frontend, Published};
use xen_xenstore::{Blocking, Path, Until, Xenstore};

use crate::abi::RING_SLOTS;
use crate::blocking_way::steps;
use crate::features::Features;
use crate::ops::Ops;
use crate::pool::Pool;
use crate::transport::Queues;
use crate::{BlkFront, Error, State, Stats};

/// What can be chosen about a disk. The default fits a guest with little memory and one virtual CPU. Made from that,
/// `Config { queues: 2, ..Config::default() }`: a minor version may add fields.
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
    /// Rings, as far as the backend has more than one: Linux's serves each by a thread of its own. Fewer when memory, grant
    /// references or event channels do not suffice.
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
    /// None: a queue that was taken.
    pub(crate) device: Option<Frontend<Connected>>,
    pub(crate) queues: Queues<'x, P>,
    /// How many there are with those that were taken.
    pub(crate) connected: usize,
}

impl<P: Platform> Link<'_, P> {
    /// Whether it is of a life of the domain before this one.
    pub(crate) fn is_stale(&self) -> bool {
        self.queues.first().is_some_and(|queue| !queue.channel.is_current())
    }
}

impl<'x, P: Platform + Wait> BlkFront<'x, P> {
    /// Connects to the disk of this number, as in `device/vbd/51712` (`xvda`), with the default [`Config`].
    ///
    /// # Errors
    /// The handshake's, also when the backend is not ready by `deadline`; [`Error::BadNode`] for a disk that cannot
    /// be; [`Error::Grant`] and [`Error::Event`] when resources do not suffice for one ring.
    pub fn connect<'d>(
        xs: &mut Xenstore<'x, P>,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
        deadline: impl Into<Until<'d>>,
    ) -> Result<Self, Error> {
        Self::connect_with(xs, events, grants, index, deadline, Config::default())
    }

    /// Connects to the disk with the lowest number, as [`first_index`](Self::first_index) tells it.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; otherwise as [`connect`](Self::connect).
    pub fn connect_first<'d>(
        xs: &mut Xenstore<'x, P>,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        deadline: impl Into<Until<'d>>,
    ) -> Result<Self, Error> {
        let first = Self::first_index(xs)?.ok_or(Error::NoDevice)?;
        Self::connect(xs, events, grants, first, deadline)
    }

    /// The lowest number of a disk that the toolstack has given the domain (`device/vbd`); none when there is no disk.
    /// Drives for CDs (`device-type` is `cdrom`) are left out; see [`first_cdrom`](Self::first_cdrom).
    ///
    /// # Errors
    /// [`Error::Xenstore`] when xenstore cannot be asked.
    pub fn first_index(xs: &mut Xenstore<'_, P>) -> Result<Option<u32>, Error> {
        first(xs, false)
    }

    /// The lowest number of a drive for CDs that the toolstack has given the domain; none when there is none.
    ///
    /// # Errors
    /// [`Error::Xenstore`] when xenstore cannot be asked.
    pub fn first_cdrom(xs: &mut Xenstore<'_, P>) -> Result<Option<u32>, Error> {
        first(xs, true)
    }

    /// [`connect`](Self::connect) with another [`Config`].
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_with<'d>(
        xs: &mut Xenstore<'x, P>,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
        deadline: impl Into<Until<'d>>,
        config: Config,
    ) -> Result<Self, Error> {
        let mut until = deadline.into();
        let deadline = until.deadline();
        Self::begin_by(xs, events, grants, index, deadline, config)?.finish_by(xs, deadline)
    }

    /// The first half of [`connect_with`](Self::connect_with): up to where the backend has all that it needs to connect.
    /// While it does that other devices can be begun, too: [`Connecting::finish`] waits for it. A `&mut Deadline` for both halves
    /// knows of the pauses of the guest in either.
    ///
    /// # Errors
    /// As [`connect_with`](Self::connect_with).
    pub fn begin<'d>(
        xs: &mut Xenstore<'x, P>,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
        deadline: impl Into<Until<'d>>,
        config: Config,
    ) -> Result<Connecting<'x, P>, Error> {
        Self::begin_by(xs, events, grants, index, deadline.into().deadline(), config)
    }

    fn begin_by(
        xs: &mut Xenstore<'x, P>,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
        deadline: &mut Deadline,
        config: Config,
    ) -> Result<Connecting<'x, P>, Error> {
        steps::begin(&mut Blocking::until(xs, deadline), events, grants, index, config)
    }
}

/// The lowest number of a device that is a drive for CDs, or is not.
fn first<P: Platform + Wait>(xs: &mut Xenstore<'_, P>, cdrom: bool) -> Result<Option<u32>, Error> {
    let mut from = Some(0);
    while let Some(least) = from {
        let mut first: Option<u32> = None;
        let listed = xs.directory("device/vbd", |name| {
            let number = name.parse().ok().filter(|number| *number >= least);
            first = first.into_iter().chain(number).min();
        });
        match listed {
            Err(error) if error.is_not_found() => return Ok(None),
            listed => listed?,
        }
        let Some(number) = first else { break };
        let is_cdrom = match xs.read(&Path::format(format_args!("device/vbd/{number}/device-type"))?) {
            Ok(kind) => kind == b"cdrom",
            // An older toolstack does not say, and a device that was just removed is noticed later.
            Err(xen_xenstore::Error::Refused(..)) => false,
            Err(error) => return Err(error.into()),
        };
        if is_cdrom == cdrom {
            return Ok(first);
        }
        from = number.checked_add(1);
    }
    Ok(None)
}

/// A disk whose backend is about to connect ([`BlkFront::begin`]).
///
/// To give it up, finish it with a deadline that has passed, and close it if it has connected: so the backend is told. One
/// that is dropped leaves the backend alone with it; its pages go to the grant table's quarantine, and a watch of xenstore
/// stays taken.
#[must_use = "the backend waits for the other half"]
pub struct Connecting<'x, P: Platform> {
    pub(crate) begun: Begun<'x, P>,
    pub(crate) events: &'x EventChannels<P>,
    pub(crate) grants: &'x GrantTable<P>,
    pub(crate) index: u32,
    pub(crate) pool: Pool<'x, P>,
    pub(crate) ops: Ops<'x, P>,
    pub(crate) config: Config,
}

impl<'x, P: Platform + Wait> Connecting<'x, P> {
    /// Waits until the backend has connected.
    ///
    /// # Errors
    /// As [`BlkFront::connect_with`].
    pub fn finish<'d>(
        self,
        xs: &mut Xenstore<'x, P>,
        deadline: impl Into<Until<'d>>,
    ) -> Result<BlkFront<'x, P>, Error> {
        self.finish_by(xs, deadline.into().deadline())
    }

    fn finish_by(self, xs: &mut Xenstore<'x, P>, deadline: &mut Deadline) -> Result<BlkFront<'x, P>, Error> {
        steps::finish_disk(self, &mut Blocking::until(xs, deadline))
    }
}

impl<'x, P: Platform> BlkFront<'x, P> {
    /// The disk of a backend that has connected.
    #[inline]
    pub(crate) fn of(
        link: Link<'x, P>,
        features: Features,
        (events, grants, index, config): (&'x EventChannels<P>, &'x GrantTable<P>, u32, Config),
        (pool, ops): (Pool<'x, P>, Ops<'x, P>),
    ) -> Self {
        Self {
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
            lost: false,
            waiters: None,
            alone: true,
            base: 0,
            times: 0,
            shared: None,
        }
    }
}

impl<P: Platform> fmt::Debug for Connecting<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connecting").field("index", &self.index).finish_non_exhaustive()
    }
}

/// The handshake after the backend was told all that it needs.
pub(crate) struct Begun<'x, P: Platform> {
    pub(crate) device: Frontend<Published>,
    pub(crate) queues: Queues<'x, P>,
    pub(crate) trusted: bool,
}

impl<'x, P: Platform + Wait> Begun<'x, P> {
    /// Whether the rest has nothing to wait for. A xenstore that cannot be asked is an error of the rest.
    pub(crate) fn is_decided(&mut self, xs: &mut Xenstore<'x, P>) -> bool {
        self.device.is_decided(xs).unwrap_or(true)
    }
}
