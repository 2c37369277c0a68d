//! Coming up.

use xen_evtchn::{Deadline, EventChannels};
use xen_gnttab::GrantTable;
use xen_hypercall::{DomId, Platform, Wait};
use xen_xenstore::way::blocking::frontend;
use xen_xenstore::xenbus::{BackendReady, Frontend, Published};
use xen_xenstore::{Blocking, Until, Xenstore};

use crate::control::Control;
use crate::front::Queues;
use crate::queue::Queue;
use crate::terms::Terms;
use crate::waiters::Waiters;
use crate::way::blocking;
use crate::{Config, Error, Followup, NetFront, State, Stats};

/// A device whose backend is about to connect ([`NetFront::begin`]).
///
/// To give it up, finish it with a deadline that has passed, and close it if it has connected: so the backend is told. One that
/// is dropped leaves the backend alone with it; its pages go to the grant table's quarantine, and a watch of xenstore stays taken.
#[must_use = "the backend waits for the other half"]
#[derive(Debug)]
pub struct Connecting<'x, P: Platform, const QUEUES: usize = 1> {
    pub(crate) front: NetFront<'x, P, QUEUES>,
    pub(crate) device: Frontend<Published>,
}

impl<'x, P: Platform + Wait, const QUEUES: usize> Connecting<'x, P, QUEUES> {
    /// Waits until the backend has connected.
    ///
    /// # Errors
    /// As [`NetFront::connect_with`].
    pub fn finish<'d>(
        self,
        xs: &mut Xenstore<'x, P>,
        deadline: impl Into<Until<'d>>,
    ) -> Result<NetFront<'x, P, QUEUES>, Error> {
        self.finish_by(xs, deadline.into().deadline())
    }

    fn finish_by(
        self,
        xs: &mut Xenstore<'x, P>,
        deadline: &mut Deadline,
    ) -> Result<NetFront<'x, P, QUEUES>, Error> {
        let Self { mut front, device } = self;
        let follows = front.config.follow_link;
        let tie = blocking::connect::tie(&mut Blocking::until(xs, &mut *deadline), device, follows)?;
        (front.backend, front.state) = (tie.device.backend_id(), State::Connected);
        front.tie = Some(tie);
        let started = front.publish().and_then(|()| front.service(xs).map(drop));
        match started {
            Ok(()) => Ok(front),
            Err(error) => {
                let _ = front.end(xs, deadline);
                Err(error)
            }
        }
    }
}

impl<'x, P: Platform + Wait> NetFront<'x, P> {
    /// Connects network device `index` (`device/vif/<index>`) with one queue and the default [`Config`], waiting for
    /// its backend until `deadline`: a time of the platform's clock, or a `&mut Deadline`. Pauses of the guest do not count.
    ///
    /// # Errors
    /// As [`connect_with`](Self::connect_with).
    pub fn connect<'d>(
        xs: &mut Xenstore<'x, P>,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
        deadline: impl Into<Until<'d>>,
    ) -> Result<Self, Error> {
        Self::connect_with(xs, events, grants, index, deadline, Config::default())
    }
}

impl<'x, P: Platform + Wait, const QUEUES: usize> NetFront<'x, P, QUEUES> {
    /// [`connect`](NetFront::connect) with another [`Config`], and up to `QUEUES` queues.
    ///
    /// # Errors
    /// [`Error::Xenstore`] when there is no such device or the backend does not come; [`Error::NoRxCopy`],
    /// [`Error::NoMac`]; [`Error::Grant`] and [`Error::Event`] when resources do not suffice for one queue; there are
    /// fewer queues when they do not suffice for all. Nothing is left behind.
    pub fn connect_with<'d>(
        xs: &mut Xenstore<'x, P>,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
        deadline: impl Into<Until<'d>>,
        config: Config,
    ) -> Result<Self, Error> {
        Self::connect_by(xs, events, grants, index, deadline.into().deadline(), config)
    }

    pub(crate) fn connect_by(
        xs: &mut Xenstore<'x, P>,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
        deadline: &mut Deadline,
        config: Config,
    ) -> Result<Self, Error> {
        Self::begin_by(xs, events, grants, index, &mut *deadline, config)?.finish_by(xs, deadline)
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
    ) -> Result<Connecting<'x, P, QUEUES>, Error> {
        Self::begin_by(xs, events, grants, index, deadline.into().deadline(), config)
    }

    /// Once for all callers, of whom some would have a copy each.
    #[inline(never)]
    fn begin_by(
        xs: &mut Xenstore<'x, P>,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
        deadline: &mut Deadline,
        config: Config,
    ) -> Result<Connecting<'x, P, QUEUES>, Error> {
        let config = Config { receive: config.receive.consistent(), ..config };
        let mut ask = Blocking::until(xs, deadline);
        let device = blocking::connect::open(&mut ask, index, config.await_device)?;
        let shared = blocking::connect::agree(&mut ask, &device, &config, QUEUES)
            .and_then(|terms| Shared::new(events, grants, device.backend_id(), &config, terms));
        let mut shared = match shared {
            Ok(shared) => shared,
            Err(error) => {
                // The first error says more than one of the way out.
                let _ = frontend::abandon(device, &mut ask);
                return Err(error);
            }
        };
        let Shared { terms, queues, control } = &mut shared;
        let device = blocking::connect::offer(&mut ask, device, &config, terms, queues, control)?;
        Ok(Connecting { front: shared.into_front(events, grants, index, config), device })
    }
}

impl<'x, P: Platform + Wait, const QUEUES: usize> NetFront<'x, P, QUEUES> {
    /// The first half of connecting anew after a resume in a new domain, with the rings and pages that there are. They are
    /// nobody's but ours until they are granted again.
    pub(crate) fn begin_again(
        &mut self,
        xs: &mut Xenstore<'x, P>,
        deadline: &mut Deadline,
    ) -> Result<Frontend<Published>, Error> {
        let config = Config { send: self.wanted, ..self.config };
        let mut ask = Blocking::until(xs, deadline);
        let device = blocking::connect::open(&mut ask, self.index, false)?;
        let shared = blocking::connect::agree(&mut ask, &device, &config, QUEUES).and_then(|terms| {
            let queues = self.share_again(&device, &config, &terms)?;
            Ok(Terms { queues, ..terms })
        });
        let terms = match shared {
            Ok(terms) => terms,
            Err(error) => {
                // The first error says more than one of the way out.
                let _ = frontend::abandon(device, &mut ask);
                return Err(error);
            }
        };
        let (queues, control) = (&mut self.queues, &mut self.control);
        let device = blocking::connect::offer(&mut ask, device, &config, &terms, queues, control)?;
        (self.multicast, self.trusted, self.headroom) = (terms.multicast, terms.trusted, terms.headroom);
        self.connected = terms.queues;
        (self.mac, self.mtu) = (terms.mac, terms.mtu);
        self.config = Config { send: terms.send, ..config };
        Ok(device)
    }

    /// As many queues as are agreed on, those that there are first. Returns how many.
    fn share_again(
        &mut self,
        device: &Frontend<BackendReady>,
        config: &Config,
        terms: &Terms,
    ) -> Result<usize, Error> {
        let (events, grants, backend) = (self.events, self.grants, device.backend_id());
        let had = self.control.as_ref().is_some_and(|control| control.changed);
        match (&mut self.control, terms.control) {
            (Some(control), true) => control.restart(events, backend)?,
            (place, wanted) => {
                *place = if wanted { Some(Control::new(events, grants, backend)?) } else { None };
                if had {
                    self.followup |= Followup::CONTROL;
                }
            }
        }
        let mut count = 0;
        for (number, place) in self.queues.iter_mut().enumerate() {
            let made = match place {
                _ if number >= terms.queues || number > count => {
                    *place = None;
                    continue;
                }
                Some(queue) => queue.restart(events, backend, terms.split),
                None => {
                    Queue::new(events, grants, backend, config, terms.split).map(|queue| *place = Some(queue))
                }
            };
            match made {
                Ok(()) => count += 1,
                // Memory, references or ports for as many as there are.
                Err(_) if count > 0 => *place = None,
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }

    /// The other half: waits until the backend has connected, and goes on.
    pub(crate) fn finish_again(
        &mut self,
        device: Frontend<Published>,
        xs: &mut Xenstore<'x, P>,
        deadline: &mut Deadline,
    ) -> Result<(), Error> {
        let follows = self.config.follow_link;
        let tie = blocking::connect::tie(&mut Blocking::until(xs, &mut *deadline), device, follows)?;
        (self.backend, self.state) = (tie.device.backend_id(), State::Connected);
        (self.tie, self.link_up) = (Some(tie), true);
        self.stats.reconnects += 1;
        self.followup |= Followup::ANNOUNCE;
        self.publish()?;
        self.want_again(deadline.at());
        self.repeat_settings(deadline.at());
        self.service(xs)?;
        Ok(())
    }
}

/// What is shared with a backend.
pub(crate) struct Shared<'x, P: Platform, const QUEUES: usize> {
    pub(crate) terms: Terms,
    pub(crate) queues: Queues<'x, P, QUEUES>,
    pub(crate) control: Option<Control<'x, P>>,
}

impl<'x, P: Platform, const QUEUES: usize> Shared<'x, P, QUEUES> {
    /// As many queues as were agreed on, and resources suffice for.
    pub(crate) fn new(
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        backend: DomId,
        config: &Config,
        terms: Terms,
    ) -> Result<Self, Error> {
        let control = match terms.control {
            true => Some(Control::new(events, grants, backend)?),
            false => None,
        };
        let mut queues = [const { None }; QUEUES];
        let mut count = 0;
        for place in queues.iter_mut().take(terms.queues) {
            match Queue::new(events, grants, backend, config, terms.split) {
                Ok(queue) => *place = Some(queue),
                // Memory, references or ports for as many as there are.
                Err(_) if count > 0 => break,
                Err(error) => return Err(error),
            }
            count += 1;
        }
        Ok(Self { terms: Terms { queues: count, ..terms }, queues, control })
    }

    /// The device, which is not connected yet.
    pub(crate) fn into_front(
        self,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
        config: Config,
    ) -> NetFront<'x, P, QUEUES> {
        let Self { terms, queues, control } = self;
        NetFront {
            index,
            tie: None,
            grants,
            events,
            queues,
            control,
            multicast: terms.multicast,
            groups: None,
            followup: Followup::empty(),
            turn: 0,
            config: Config { send: terms.send, ..config },
            wanted: config.send,
            trusted: terms.trusted,
            headroom: terms.headroom,
            link_up: true,
            waiters: Waiters::default(),
            told_up: false,
            mac: terms.mac,
            mtu: terms.mtu,
            state: State::Closed,
            stats: Stats::default(),
            connected: terms.queues,
            hashes: false,
            backend: DomId::INVALID,
            lent: None,
        }
    }
}
