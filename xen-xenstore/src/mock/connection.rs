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
use xen_ring::{Backing, ByteRing, Reversed, SharedMem, XenstoreLayout};
use zerocopy::{FromBytes, IntoBytes};

use super::Tamper;
use super::tree::Changes;
use crate::wire::{HEADER_SIZE, Header, Operation};

pub(super) struct Connection {
    guest: MockDomain,
    dom0: MockDomain,
    port: u32,
    page: NonNull<Page>,
    ring: ByteRing<Reversed<XenstoreLayout>, GuestPage>,
    received: Vec<u8>,
    outgoing: VecDeque<(Header, Vec<u8>)>,
    sending: Vec<u8>,
    pub(super) watches: Vec<(String, String)>,
    pub(super) transactions: BTreeMap<u32, Changes>,
    pub(super) last_transaction: u32,
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
            guest: guest.clone(),
            dom0,
            port,
            page,
            ring: ByteRing::new(GuestPage(page)).expect("a page is large enough"),
            received: Vec::new(),
            outgoing: VecDeque::new(),
            sending: Vec::new(),
            watches: Vec::new(),
            transactions: BTreeMap::new(),
            last_transaction: 0,
        }
    }

    pub(super) fn id(&self) -> DomId {
        self.guest.id()
    }

    pub(super) fn home(&self) -> String {
        format!("/local/domain/{}", self.id().0)
    }

    pub(super) fn poke(&mut self, offset: usize, value: u32) {
        let written = GuestPage(self.page).mem().store_u32(offset, value, Ordering::Release);
        written.expect("an aligned offset in the page");
    }

    /// The next whole message of the guest's.
    pub(super) fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut buf = [0; 1024];
        while let Ok(count @ 1..) = self.ring.read(&mut buf) {
            self.received.extend_from_slice(&buf[..count]);
            self.notify();
        }
        let (header, rest) = Header::read_from_prefix(&self.received).ok()?;
        let payload = rest.get(..header.len as usize)?.to_vec();
        self.received.drain(..HEADER_SIZE + payload.len());
        Some((header, payload))
    }

    pub(super) fn answer(&mut self, header: Header, payload: Vec<u8>) {
        self.outgoing.push_back((header, payload));
    }

    /// Moves what fits into the ring.
    pub(super) fn transmit(&mut self, mut tamper: Option<&mut Tamper>) -> bool {
        let mut progress = false;
        loop {
            if self.sending.is_empty() {
                let Some((mut header, mut payload)) = self.outgoing.pop_front() else { break };
                header.len = payload.len() as u32;
                if let Some(tamper) = &mut tamper {
                    tamper(&mut header, &mut payload);
                }
                self.sending = [header.as_bytes(), &payload].concat();
            }
            let count = self.ring.write(&self.sending).unwrap_or(0);
            self.sending.drain(..count);
            progress |= count > 0;
            if !self.sending.is_empty() {
                break;
            }
        }
        if progress {
            self.notify();
        }
        progress
    }

    /// Fires the watches at, above and below `path`.
    pub(super) fn tell(&mut self, path: &str) {
        let home = self.home() + "/";
        let concerned = self.watches.iter().filter(|(watched, _)| {
            let watched = absolute(&home, watched);
            let is_below = |path: &str, of: &str| path == of || path.starts_with(&format!("{of}/"));
            is_below(path, &watched) || is_below(&watched, path)
        });
        let events: Vec<(String, String)> = concerned
            .map(|(watched, token)| {
                let full = absolute(&home, watched);
                let changed = if path.len() < full.len() { full } else { path.to_string() };
                let shown = if watched.starts_with('/') { changed } else { changed.replacen(&home, "", 1) };
                (shown, token.clone())
            })
            .collect();
        for (shown, token) in events {
            self.watch_event(&shown, &token);
        }
    }

    pub(super) fn watch_event(&mut self, path: &str, token: &str) {
        let header = Header { kind: Operation::WATCH_EVENT.0, request_id: 0, transaction_id: 0, len: 0 };
        self.answer(header, format!("{path}\0{token}\0").into_bytes());
    }

    fn notify(&self) {
        xen_hypercall::event::send(&self.dom0, self.port).expect("the daemon's port");
    }
}

fn absolute(home: &str, path: &str) -> String {
    if path.starts_with('/') || path.starts_with('@') { path.into() } else { format!("{home}{path}") }
}
