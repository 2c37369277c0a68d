//! A switch between guests and the host.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use xen_hypercall::mock::MockXen;

use super::{Frame, pcap};

/// Frames that a port holds before it drops, as many as Linux's `txqueuelen` of a vif.
const QUEUE: usize = 1000;
/// Frames that the capture keeps; older ones go.
const CAPTURED: usize = 10_000;

/// A learning switch: the vifs of [`MockNetback`](super::MockNetback)s, and one port for the host, where a test sends
/// and receives. Clones are handles to the same one.
#[derive(Clone)]
pub struct MockSwitch(Arc<Mutex<Switch>>);

struct Switch {
    xen: MockXen,
    ports: Vec<Port>,
    learned: BTreeMap<[u8; 6], usize>,
    captured: VecDeque<(Duration, Vec<u8>)>,
}

#[derive(Default)]
struct Port {
    frames: VecDeque<Frame>,
    down: bool,
    dropped: u64,
}

/// The host's port.
const HOST: usize = 0;

impl core::fmt::Debug for MockSwitch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("MockSwitch")
    }
}

impl MockSwitch {
    /// A switch with the host's port.
    pub fn new(xen: &MockXen) -> Self {
        Self(Arc::new(Mutex::new(Switch {
            xen: xen.inside(),
            ports: [Port::default()].into(),
            learned: BTreeMap::new(),
            captured: VecDeque::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, Switch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine that it is on, by a handle that does not keep it; see [`MockXen::inside`].
    pub fn xen(&self) -> MockXen {
        self.state().xen.clone()
    }

    /// Sends a frame from the host.
    pub fn send(&self, frame: impl Into<Frame>) {
        self.forward(HOST, frame.into());
    }

    /// The next frame that came to the host: one for its address, for all, or for an address that nobody has shown.
    pub fn receive(&self) -> Option<Frame> {
        self.take(HOST)
    }

    /// Frames that ports dropped because they were full.
    pub fn dropped(&self) -> u64 {
        self.state().ports.iter().map(|port| port.dropped).sum()
    }

    /// What passed so far, in the format of libpcap, which Wireshark opens. Frames are there as their senders left
    /// them: large ones are not cut, and blank checksums are blank.
    pub fn pcap(&self) -> Vec<u8> {
        pcap::file(self.state().captured.iter().map(|(time, bytes)| (*time, &**bytes)))
    }

    pub(super) fn add_port(&self) -> usize {
        let mut state = self.state();
        state.ports.push(Port { down: true, ..Port::default() });
        state.ports.len() - 1
    }

    /// A port that is down receives nothing and forgets what it held.
    pub(super) fn set_up(&self, port: usize, up: bool) {
        if let Some(port) = self.state().ports.get_mut(port) {
            port.down = !up;
            port.frames.clear();
        }
    }

    pub(super) fn take(&self, port: usize) -> Option<Frame> {
        self.state().ports.get_mut(port)?.frames.pop_front()
    }

    pub(super) fn forward(&self, from: usize, frame: Frame) {
        let mut state = self.state();
        if state.captured.len() == CAPTURED {
            state.captured.pop_front();
        }
        let now = state.xen.now();
        state.captured.push_back((now, frame.bytes.clone()));
        let address =
            |at: usize| frame.bytes.get(at..at + 6).and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        let (Some(to), Some(source)) = (address(0), address(6)) else { return };
        if source[0] & 1 == 0 {
            state.learned.insert(source, from);
        }
        let to = state.learned.get(&to).copied().filter(|_| to[0] & 1 == 0);
        for (index, port) in state.ports.iter_mut().enumerate() {
            if index == from || port.down || to.is_some_and(|to| to != index) {
                continue;
            }
            if port.frames.len() < QUEUE {
                port.frames.push_back(frame.clone());
            } else {
                port.dropped += 1;
            }
        }
    }
}
