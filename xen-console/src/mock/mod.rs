//! A console daemon for tests on the host.
#![allow(unsafe_code, reason = "maps the guest's page")]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use core::ptr::NonNull;

use xen_evtchn::EventChannels;
use xen_hypercall::hvm::HvmParam;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, Gfn, PAGE_SIZE, Page};
use xen_ring::{Backing, ByteRing, ConsoleLayout, Reversed, SharedMem};

/// Where the toolstack puts a guest's console page.
const CONSOLE_GFN: Gfn = Gfn(0xF_EFFF);

/// The daemon of one guest's console: collects what the guest writes, types what a test wants typed.
#[derive(Clone)]
pub struct MockConsoled(Arc<Mutex<State>>);

struct State {
    ring: ByteRing<Reversed<ConsoleLayout>, GuestPage>,
    guest: MockDomain,
    port: u32,
    dom0: MockDomain,
    output: Vec<u8>,
    input: Vec<u8>,
    stalled: bool,
}

struct GuestPage(NonNull<Page>);

// SAFETY: the page belongs to nobody's thread.
unsafe impl Send for GuestPage {}

impl Backing for GuestPage {
    fn mem(&mut self) -> SharedMem<'_> {
        // SAFETY: the page is the guest's special page, valid as long as the machine; the daemon's side accesses it
        // here alone. The guest's side is, as in life, another party that accesses it by volatile means.
        unsafe { SharedMem::new(self.0.cast(), PAGE_SIZE) }
    }
}

impl std::fmt::Debug for MockConsoled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MockConsoled")
    }
}

impl MockConsoled {
    /// Gives a guest a console, as the toolstack does, and serves it from domain 0. The mock of event channels must
    /// be installed.
    ///
    /// # Panics
    /// When the guest has a console already.
    pub fn connect(xen: &MockXen, guest: &MockDomain) -> Self {
        let page = guest.special_page(CONSOLE_GFN);
        let dom0 = xen.domain(DomId(0));
        let local = xen_hypercall::event::alloc_unbound(guest, dom0.id()).expect("a port for the guest");
        let port =
            xen_hypercall::event::bind_interdomain(&dom0, guest.id(), local).expect("a port for the daemon");
        guest.set_hvm_param(HvmParam::CONSOLE_PFN, CONSOLE_GFN.0);
        guest.set_hvm_param(HvmParam::CONSOLE_EVTCHN, local.into());
        let daemon = Self(Arc::new(Mutex::new(State {
            ring: ByteRing::new(GuestPage(page)).expect("a page is large enough"),
            guest: guest.clone(),
            port,
            dom0,
            output: Vec::new(),
            input: Vec::new(),
            stalled: false,
        })));
        let actor = daemon.clone();
        xen.add_actor("consoled", move |_| actor.state().step());
        daemon
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the guest has written so far.
    pub fn output(&self) -> Vec<u8> {
        self.state().output.clone()
    }

    /// Types bytes; the guest gets them as fast as it reads.
    pub fn type_in(&self, bytes: &[u8]) {
        self.state().input.extend_from_slice(bytes);
    }

    /// A daemon that hangs: reads and writes nothing until it is told otherwise.
    pub fn stall(&self, stalled: bool) {
        self.state().stalled = stalled;
    }

    /// A daemon that lies: writes any value to a word of the page (offsets as in `io/console.h`).
    pub fn poke(&self, offset: usize, value: u32) {
        let mut page = GuestPage(self.state().guest.page_at(CONSOLE_GFN).expect("the console's page"));
        let written = page.mem().store_u32(offset, value, core::sync::atomic::Ordering::Release);
        written.expect("an aligned offset in the page");
    }
}

impl State {
    fn step(&mut self) -> bool {
        if self.stalled {
            return false;
        }
        let mut buf = [0; 256];
        let read = self.ring.read(&mut buf).unwrap_or(0);
        self.output.extend_from_slice(&buf[..read]);
        let written = self.ring.write(&self.input).unwrap_or(0);
        self.input.drain(..written);
        if read + written > 0 {
            xen_hypercall::event::send(&self.dom0, self.port).expect("the daemon's port");
        }
        read + written > 0
    }
}

/// The guest's view of event channels, for tests and examples that need no more than a console.
///
/// # Panics
/// When the machine has no memory left.
pub fn guest(xen: &MockXen, id: DomId) -> (MockDomain, EventChannels<MockDomain>) {
    let domain = xen.domain(id);
    let shared = xen_hypercall::SharedInfo::map(&domain).expect("shared_info");
    let events = EventChannels::new(domain.clone(), shared).expect("event channels");
    (domain, events)
}
