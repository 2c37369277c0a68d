//! What is asked of the backend and the toolstack, what is agreed on, and what the backend is told of it.

use xen_hypercall::{PAGE_SIZE, Platform};
use xen_xenstore::{Changes, Path, Question, names, parse};

use crate::config::NODES;
use crate::control::Control;
use crate::front::{LARGE, Queues};
use crate::packet::ETHERNET;
use crate::queue::Queue;
use crate::{Config, Error, FRAME_MAX, Features, Mac, Multicast};

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

/// The nodes that are asked for: our own, then those of the backend that say what it can do, the features among them.
fn nodes() -> [&'static str; 16] {
    let [n0, n1, n2, n3, n4] = NODES.map(|(node, ..)| node);
    [
        "mtu",
        "trusted",
        "mac",
        // All names in the directory.
        "",
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

const MAC: usize = 2;
const DIRECTORY: usize = 3;

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
    pub(crate) fn questions<'q>(frontend: &'q str, backend: &'q str) -> impl Iterator<Item = Question<'q>> {
        nodes().into_iter().enumerate().map(move |(place, node)| match place {
            DIRECTORY => Question::directory(frontend),
            _ => Question::read(if place < DIRECTORY { frontend } else { backend }, node),
        })
    }

    /// Notes an answer. What makes no sense is not there.
    pub(crate) fn note(&mut self, place: usize, answer: Result<&[u8], xen_xenstore::Error>) {
        // Values are in the order of the questions, without those two.
        let tag = if place > DIRECTORY { place - 2 } else { place };
        match answer {
            Ok(list) if place == DIRECTORY => self.left.note(list),
            Ok(value) if place == MAC => self.mac = parse(value).ok(),
            Ok(value) => {
                if let Some(place) = self.values.get_mut(tag) {
                    *place = parse(value).ok();
                }
            }
            // Of our own nodes only the address is needed.
            Err(error) if place >= MAC && !error.is_not_found() => self.read = Err(error),
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
