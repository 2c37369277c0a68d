//! One guest's connection: its page, its watches, its transactions, and the bytes on the way.
#![allow(unsafe_code, reason = "maps the guest's page")]

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use xen_hypercall::mock::MockDomain;
use xen_hypercall::{DomId, PAGE_SIZE, Page};
use xen_ring::{Backing, ByteRing, Reversed, RingError, SharedMem, XenstoreLayout};
use zerocopy::{FromBytes, IntoBytes};

use super::Tamper;
use super::changes::Changes;
use super::tree::{Change, Reach};
use crate::ServerFeatures;
use crate::wire::{HEADER_SIZE, Header, Operation, PAYLOAD_MAX};

/// Why a connection was given up (`XENSTORE_ERROR_*`).
const ERROR_COMMUNICATION: u32 = 1;
const ERROR_INDICES: u32 = 2;
const ERROR_PROTOCOL: u32 = 3;

/// The guest, or whoever made it, asks for a connection (`XENSTORE_RECONNECT`).
const RECONNECT: u32 = 1;

pub(super) struct Connection {
    guest: MockDomain,
    dom0: MockDomain,
    port: u32,
    page: NonNull<Page>,
    ring: ByteRing<Reversed<XenstoreLayout>, GuestPage>,
    received: Vec<u8>,
    outgoing: VecDeque<(Header, Vec<u8>)>,
    sending: Vec<u8>,
    /// Answers that wait for the guest's next question.
    held: Vec<(Header, Vec<u8>)>,
    pub(super) watches: Vec<Watch>,
    pub(super) transactions: BTreeMap<u32, Changes>,
    pub(super) last_transaction: u32,
    /// It broke the protocol, or we gave it up: nothing is served any more.
    dead: bool,
    /// There is something to look at in the ring.
    pub(super) looks: bool,
    /// The ring was full, so nothing more is written before an event.
    waits_for_room: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Watch {
    pub(super) path: String,
    pub(super) token: String,
}

struct GuestPage(NonNull<Page>);

// SAFETY: the page belongs to nobody's thread.
unsafe impl Send for GuestPage {}
// SAFETY: as above; the pointer is only used through `GuestPage`.
unsafe impl Send for Connection {}

impl Backing for GuestPage {
    fn mem(&mut self) -> SharedMem<'_> {
        // SAFETY: the page is the guest's special page, valid as long as the machine; the daemon's side accesses it
        // here alone. The guest's side is, as in life, another party that accesses it by volatile means.
        unsafe { SharedMem::new(self.0.cast(), PAGE_SIZE) }
    }
}

impl Connection {
    pub(super) fn new(guest: &MockDomain, page: NonNull<Page>, dom0: MockDomain, port: u32) -> Self {
        Self {
            guest: guest.inside(),
            dom0,
            port,
            page,
            ring: ByteRing::new(GuestPage(page)).expect("a page is large enough"),
            received: Vec::new(),
            outgoing: VecDeque::new(),
            sending: Vec::new(),
            held: Vec::new(),
            watches: Vec::new(),
            transactions: BTreeMap::new(),
            last_transaction: 0,
            // The daemon does not know it yet.
            dead: true,
            looks: false,
            waits_for_room: false,
        }
    }

    /// The page as Xen leaves it before there is a daemon.
    pub(super) fn show(&mut self) {
        self.offer(ServerFeatures::empty());
        self.poke(XenstoreLayout::CONNECTION, RECONNECT);
    }

    /// The daemon begins to serve the guest.
    pub(super) fn begin(&mut self) {
        self.offer(ServerFeatures::RECONNECTION | ServerFeatures::ERROR);
        self.join();
    }

    /// Begins anew with an empty ring.
    fn join(&mut self) {
        self.forget();
        for offset in [2048, 2052, 2056, 2060, XenstoreLayout::ERROR] {
            self.poke(offset, 0);
        }
        self.ring.rejoin().expect("a page is large enough");
        self.dead = false;
        self.poke(XenstoreLayout::CONNECTION, 0);
        self.notify();
    }

    pub(super) fn id(&self) -> DomId {
        self.guest.id()
    }

    pub(super) fn home(&self) -> String {
        format!("/local/domain/{}", self.id().0)
    }

    /// Ends it, and returns the page, which is empty.
    pub(super) fn close(self) -> NonNull<Page> {
        // The guest's end is gone already.
        let _ = xen_hypercall::event::close(&self.dom0, self.port);
        let zeroes = [0; PAGE_SIZE];
        GuestPage(self.page).mem().write_bytes(0, &zeroes).expect("a page");
        self.page
    }

    pub(super) fn poke(&mut self, offset: usize, value: u32) {
        let written = GuestPage(self.page).mem().store_u32(offset, value, Ordering::Release);
        written.expect("an aligned offset in the page");
    }

    fn peek(&self, offset: usize) -> u32 {
        GuestPage(self.page).mem().load_u32(offset, Ordering::Acquire).expect("an offset in the page")
    }

    pub(super) fn offer(&mut self, features: ServerFeatures) {
        self.poke(XenstoreLayout::SERVER_FEATURES, features.bits());
    }

    fn offers(&self, feature: ServerFeatures) -> bool {
        ServerFeatures::from_bits_retain(self.peek(XenstoreLayout::SERVER_FEATURES)).contains(feature)
    }

    /// Whether the guest sent an event since the last look.
    pub(super) fn take_event(&mut self) -> bool {
        let Some(shared) = self.dom0.shared_info() else { return false };
        let bit = 1 << (self.port % 64);
        let word = shared.evtchn_pending(self.port as usize / 64);
        let came = word.is_some_and(|word| word.fetch_and(!bit, Ordering::SeqCst) & bit != 0);
        self.waits_for_room &= !came;
        came
    }

    /// Does what a guest that wants a new connection gets; returns whether it wanted one.
    pub(super) fn reconnect(&mut self) -> bool {
        let wanted =
            self.offers(ServerFeatures::RECONNECTION) && self.peek(XenstoreLayout::CONNECTION) == RECONNECT;
        if wanted {
            self.join();
        }
        wanted
    }

    /// Gives the guest up.
    pub(super) fn give_up(&mut self, error: u32) {
        self.forget();
        self.dead = true;
        if self.offers(ServerFeatures::ERROR) {
            self.poke(XenstoreLayout::ERROR, error);
        }
        self.notify();
    }

    pub(super) fn lose(&mut self) {
        self.give_up(ERROR_COMMUNICATION);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead
    }

    fn forget(&mut self) {
        self.received.clear();
        self.outgoing.clear();
        self.sending.clear();
        self.held.clear();
        self.watches.clear();
        self.transactions.clear();
        self.waits_for_room = false;
    }

    /// The next whole message of the guest's. A guest that breaks the protocol is given up.
    pub(super) fn receive(&mut self, at_most: usize) -> Option<(Header, Vec<u8>)> {
        let mut buf = [0; 1024];
        let room = at_most.min(buf.len());
        match self.ring.read(&mut buf[..room]) {
            Ok(0) => {}
            Ok(count) => {
                self.received.extend_from_slice(&buf[..count]);
                self.notify();
            }
            Err(RingError::Broken(_)) => self.give_up(ERROR_INDICES),
            Err(error) => panic!("{error}"),
        }
        let (header, rest) = Header::read_from_prefix(&self.received).ok()?;
        if header.len as usize > PAYLOAD_MAX {
            self.give_up(ERROR_PROTOCOL);
            return None;
        }
        let payload = rest.get(..header.len as usize)?.to_vec();
        self.received.drain(..HEADER_SIZE + payload.len());
        Some((header, payload))
    }

    /// Whether something that was sent is not taken out of the ring yet, or was and is not looked at.
    pub(super) fn has_input(&mut self) -> bool {
        let waits = Header::read_from_prefix(&self.received)
            .is_ok_and(|(header, rest)| rest.len() >= header.len as usize);
        waits || self.ring.readable().is_ok_and(|count| count > 0)
    }

    pub(super) fn answer(&mut self, header: Header, payload: Vec<u8>) {
        self.outgoing.push_back((header, payload));
    }

    pub(super) fn hold(&mut self, header: Header, payload: Vec<u8>) {
        self.held.push((header, payload));
    }

    /// Lets the answers go that were held back.
    pub(super) fn release(&mut self) {
        self.outgoing.extend(self.held.drain(..));
    }

    /// Moves what fits into the ring, at most so many bytes.
    pub(super) fn transmit(&mut self, mut tamper: Option<&mut Tamper>, mut at_most: usize) -> bool {
        let mut progress = false;
        while at_most > 0 && !self.waits_for_room {
            if self.sending.is_empty() {
                let Some((mut header, mut payload)) = self.outgoing.pop_front() else { break };
                header.len = payload.len() as u32;
                if let Some(tamper) = &mut tamper {
                    tamper(&mut header, &mut payload);
                }
                self.sending.extend_from_slice(header.as_bytes());
                self.sending.append(&mut payload);
            }
            let piece = &self.sending[..self.sending.len().min(at_most)];
            let Ok(count) = self.ring.write(piece) else {
                self.give_up(ERROR_INDICES);
                return true;
            };
            self.sending.drain(..count);
            at_most -= count;
            progress |= count > 0;
            self.waits_for_room = count == 0;
        }
        if progress {
            self.notify();
        }
        progress
    }

    /// The events that a change makes for this guest.
    pub(super) fn events_of(&self, change: &Change) -> Vec<Watch> {
        if self.watches.is_empty() || change.reach == Reach::Nobody || !change.is_visible_to(self.id()) {
            return Vec::new();
        }
        let home = self.home() + "/";
        let concerned = self.watches.iter().filter_map(|watch| {
            let relative = !watch.path.starts_with(['/', '@']);
            let home = if relative { &*home } else { "" };
            concerns(watch, home, change).then(|| {
                let path = change.path.strip_prefix(home).unwrap_or(&change.path);
                Watch { path: path.to_string(), token: watch.token.clone() }
            })
        });
        concerned.collect()
    }

    pub(super) fn watch_event(&mut self, Watch { path, token }: &Watch) {
        let header = Header { kind: Operation::WATCH_EVENT.0, request_id: 0, transaction_id: 0, len: 0 };
        let id = self.id();
        self.guest.xen().trace(|| format!("xenstored to {id}: event {path} ({token})"));
        self.answer(header, [path.as_bytes(), b"\0", token.as_bytes(), b"\0"].concat());
    }

    pub(super) fn trace(&self, line: impl FnOnce() -> String) {
        self.guest.xen().trace(line);
    }

    fn notify(&self) {
        // Fails when the guest has closed its end, which is its own affair.
        let _ = xen_hypercall::event::send(&self.dom0, self.port);
    }
}

/// Whether a change is one to what is watched, which is below `home` unless that is empty, or below it and told of.
fn concerns(watch: &Watch, home: &str, change: &Change) -> bool {
    if watch.path == "/" {
        return change.path.starts_with('/') && (change.reach == Reach::All || *change.path == *watch.path);
    }
    let end = home.len() + watch.path.len();
    let fits = match change.path.as_bytes().get(end) {
        None => change.path.len() == end,
        Some(next) => *next == b'/' && change.reach == Reach::All,
    };
    fits && change.path.strip_prefix(home).is_some_and(|path| path.starts_with(&watch.path))
}
