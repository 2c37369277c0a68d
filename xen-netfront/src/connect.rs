//! Coming up.

use xen_evtchn::{Deadline, EventChannels};
use xen_gnttab::GrantTable;
use xen_hypercall::{DomId, PAGE_SIZE, Platform, Wait};
use xen_xenstore::way::blocking::frontend;
use xen_xenstore::xenbus::{BackendReady, Frontend, Published};
use xen_xenstore::{Blocking, Changes, Path, Question, Until, Xenstore, names, parse};

use crate::config::NODES;
use crate::control::Control;
use crate::front::{LARGE, Queues};
use crate::multicast::Multicast;
use crate::packet::ETHERNET;
use crate::queue::Queue;
use crate::waiters::Waiters;
use crate::way::blocking;
use crate::{Config, Error, FRAME_MAX, Features, Followup, Mac, NetFront, State, Stats};

/// The MTU when nobody says another, in bytes.
const MTU: u32 = 1500;
/// The least that IPv4 allows.
const MTU_MIN: u32 = 68;

/// Most of a page is for the frame.
const HEADROOM: u16 = 2048;

/// What was agreed on.
pub(crate) struct Terms {
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
    pub(crate) send: Features,
    pub(crate) queues: usize,
    pub(crate) split: bool,
    pub(crate) trusted: bool,
    pub(crate) multicast: Multicast,
    pub(crate) control: bool,
    pub(crate) headroom: u16,
    pub(crate) left: Leftovers,
}

/// Nodes that a frontend writes, if not always. A backend refuses keys of another number of queues than it is told.
const OPTIONAL: [&str; 15] = [
    "multi-queue-num-queues",
    "tx-ring-ref",
    "rx-ring-ref",
    "event-channel",
    "event-channel-tx",
    "event-channel-rx",
    "ctrl-ring-ref",
    "event-channel-ctrl",
    "feature-sg",
    "feature-no-csum-offload",
    "feature-ipv6-csum-offload",
    "feature-gso-tcpv4",
    "feature-gso-tcpv6",
    "request-multicast-control",
    "xdp-headroom",
];

/// Which of these an earlier kernel of this domain left in the device's directory, a bit for each.
#[derive(Clone, Copy, Default)]
pub(crate) struct Leftovers(u16);

impl Leftovers {
    fn note(&mut self, list: &[u8]) {
        let places = names(list).filter_map(|name| OPTIONAL.iter().position(|node| *node == name));
        self.0 = places.fold(0, |all, place| all | 1 << place);
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        OPTIONAL.iter().enumerate().filter(move |(place, _)| self.0 & 1 << place != 0).map(|(_, node)| *node)
    }
}

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
        Self::begin(xs, events, grants, index, &mut *deadline, config)?.finish(xs, deadline)
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

/// The nodes of the backend that say what it can do, the features among them.
pub(crate) fn nodes() -> [&'static str; 12] {
    let [n0, n1, n2, n3, n4] = NODES.map(|(node, ..)| node);
    [
        "feature-rx-copy",
        n0,
        n1,
        n2,
        n3,
        n4,
        "multi-queue-max-queues",
        "feature-split-event-channels",
        "feature-multicast-control",
        "feature-dynamic-multicast-control",
        "feature-ctrl-ring",
        "feature-xdp-headroom",
    ]
}

/// Our own nodes beside the address.
const OWN: [&str; 2] = ["mtu", "trusted"];

/// What is asked for at once, and what was answered.
pub(crate) struct Answers {
    values: [Option<u32>; 14],
    mac: Option<Mac>,
    left: Leftovers,
    read: Result<(), xen_xenstore::Error>,
}

impl Answers {
    pub(crate) fn new() -> Self {
        Self { values: [None; 14], mac: None, left: Leftovers::default(), read: Ok(()) }
    }

    /// All questions, each of which is known by its place.
    pub(crate) fn questions<'q>(
        frontend: &'q str,
        backend: &'q str,
        nodes: &'q [&'static str; 12],
    ) -> impl Iterator<Item = Question<'q>> {
        let own = OWN.iter().map(move |name| Question::read(frontend, name));
        let own = own.chain([Question::read(frontend, "mac"), Question::directory(frontend)]);
        own.chain(nodes.iter().map(move |name| Question::read(backend, name)))
    }

    /// Notes an answer. What makes no sense is not there.
    pub(crate) fn note(&mut self, place: usize, answer: Result<&[u8], xen_xenstore::Error>) {
        const MAC: usize = OWN.len();
        const DIRECTORY: usize = OWN.len() + 1;
        // Values are in the order of the questions, without those two.
        let tag = if place > DIRECTORY { place - 2 } else { place };
        match answer {
            Ok(list) if place == DIRECTORY => self.left.note(list),
            Ok(value) if place == MAC => self.mac = parse(value).ok(),
            Ok(value) => {
                self.values.iter_mut().skip(tag).take(1).for_each(|place| *place = parse(value).ok())
            }
            // Of our own nodes only the address is needed.
            Err(error) if place >= OWN.len() && !error.is_not_found() => self.read = Err(error),
            Err(_) => {}
        }
    }

    /// What was agreed on, if that does for a device.
    pub(crate) fn terms(self, config: &Config, most: usize) -> Result<Terms, Error> {
        let Self { values, mac, left, read, .. } = self;
        read?;
        let mac = mac.ok_or(Error::NoMac)?;
        let [mtu, trusted, values @ ..] = values;
        let [copy, offers @ .., queues, split, multicast, dynamic, control, headroom] = values;
        if copy != Some(1) {
            return Err(Error::NoRxCopy);
        }
        let mut offered = Features::empty();
        for ((_, feature, positive), value) in NODES.into_iter().zip(offers) {
            offered.set(feature, (value.unwrap_or(0) != 0) == positive);
        }
        // A frame of several slots needs as many pages.
        if config.tx_pages < LARGE {
            offered.remove(Features::SCATTER_GATHER);
        }
        let queues = queues.unwrap_or(1) as usize;
        let split = config.split_channels && split == Some(1);
        let multicast = match (multicast, dynamic) {
            (_, Some(1)) => Multicast::Dynamic,
            (Some(1), _) => Multicast::Static,
            _ => Multicast::Unfiltered,
        };
        let control = config.control_ring && control == Some(1);
        let headroom = if headroom == Some(1) { config.headroom.min(HEADROOM) } else { 0 };
        let send = (offered & config.send).consistent();
        let longest = |features: Features| {
            if features.contains(Features::SCATTER_GATHER) { FRAME_MAX } else { PAGE_SIZE }
        };
        // Each direction has its own limit.
        let limit = longest(send).min(longest(config.receive) - usize::from(headroom)) - ETHERNET;
        Ok(Terms {
            mac,
            mtu: mtu.filter(|mtu| *mtu >= MTU_MIN).unwrap_or(MTU).min(limit as u32),
            send,
            queues: queues.min(config.queues).min(most).max(1),
            split,
            trusted: trusted != Some(0),
            multicast,
            control,
            headroom,
            left,
        })
    }
}

/// Writes what the backend needs to know of the queues, and all that was agreed on.
pub(crate) fn write<P: Platform, const QUEUES: usize>(
    changes: &mut Changes<'_>,
    path: &Path,
    config: &Config,
    terms: &Terms,
    queues: &mut Queues<'_, P, QUEUES>,
    control: &mut Option<Control<'_, P>>,
) -> Result<(), xen_xenstore::Error> {
    announce(changes, path, config.receive, terms.left)?;
    let filter = config.multicast_filter && terms.multicast != Multicast::Unfiltered;
    put(changes, path, "request-multicast-control", filter.into())?;
    put(changes, path, "xdp-headroom", terms.headroom.into())?;
    if let Some(control) = control.as_mut() {
        put(changes, path, "ctrl-ring-ref", control.ring.backing().gref().0)?;
        put(changes, path, "event-channel-ctrl", control.channel.port().0)?;
    }
    if terms.queues > 1 {
        put(changes, path, "multi-queue-num-queues", terms.queues as u32)?;
    }
    for (number, queue) in queues.iter_mut().flatten().enumerate() {
        let below = if terms.queues > 1 { path.join(format_args!("queue-{number}"))? } else { *path };
        tell(changes, &below, queue)?;
    }
    Ok(())
}

/// Zero is what a node that is not there says.
fn put(changes: &mut Changes<'_>, path: &Path, node: &str, value: u32) -> Result<(), xen_xenstore::Error> {
    if value == 0 { Ok(()) } else { changes.write_display(&path.join(node)?, value) }
}

/// Writes what the backend may do, and that it is to copy and to tell of each frame by the event channel.
fn announce(
    changes: &mut Changes<'_>,
    path: &Path,
    receive: Features,
    left: Leftovers,
) -> Result<(), xen_xenstore::Error> {
    for node in left.names() {
        changes.remove(&path.join(node)?)?;
    }
    put(changes, path, "request-rx-copy", 1)?;
    put(changes, path, "feature-rx-notify", 1)?;
    NODES.iter().try_for_each(|(node, feature, positive)| {
        put(changes, path, node, (receive.contains(*feature) == *positive).into())
    })
}

fn tell<P: Platform>(
    changes: &mut Changes<'_>,
    path: &Path,
    queue: &mut Queue<'_, P>,
) -> Result<(), xen_xenstore::Error> {
    let mut write = |node: &str, value: u32| put(changes, path, node, value);
    write("tx-ring-ref", queue.tx.ring.backing().gref().0)?;
    write("rx-ring-ref", queue.rx.ring.backing().gref().0)?;
    match &queue.rx_channel {
        None => write("event-channel", queue.channel.port().0),
        Some(channel) => {
            write("event-channel-tx", queue.channel.port().0)?;
            write("event-channel-rx", channel.port().0)
        }
    }
}
