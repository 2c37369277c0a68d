//! A console daemon for tests on the host.
//!
//! [`MockConsoled`] serves one console of one guest by the real protocol in a real shared page. It looks at the page
//! only when it got an event, so a driver that forgets one waits here as it would on Xen. See the crate's first page
//! for an example.

pub mod model;
mod page;
#[cfg(feature = "xenbus")]
mod xenbus;

use core::sync::atomic::Ordering;
use std::format;
use std::string::ToString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use xen_evtchn::EventChannels;
use xen_hypercall::hvm::HvmParam;
use xen_hypercall::mock::{Chance, Dice, MockDomain, MockXen};
use xen_hypercall::{DomId, Gfn, PAGE_SIZE, event};
use xen_ring::{Backing, ByteRing, ConsoleLayout, Reversed, StreamLayout};

use page::DaemonPage;

/// Where the toolstack puts a guest's console page.
const CONSOLE_GFN: Gfn = Gfn(0xF_EFFF);

/// The daemon of one guest's console: collects what the guest writes, types what a test wants typed. Clones are
/// handles to the same one.
#[derive(Clone)]
pub struct MockConsoled(Arc<Mutex<State>>);

/// What may go wrong, and how often. Nothing does at first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Faults {
    /// It does not look at the console although there is something to do.
    pub stalls: Chance,
    /// It takes only a part of what the guest wrote.
    pub short_read: Chance,
    /// It types only a part of what there is room for.
    pub short_write: Chance,
    /// It sends an event for nothing.
    pub spurious_event: Chance,
    /// It writes any number into one of its two indices.
    pub index_jump: Chance,
}

impl Faults {
    /// No faults.
    pub fn new() -> Self {
        Self::default()
    }
}

struct State {
    guest: MockDomain,
    /// The domain that the daemon runs in.
    home: MockDomain,
    link: Option<Link>,
    #[cfg(feature = "xenbus")]
    device: Option<xenbus::Device>,
    output: Vec<u8>,
    input: Vec<u8>,
    /// There is something in the page to look at.
    looks: bool,
    stalled: bool,
    /// Nobody takes what the daemon reads, and it has no more room for it.
    unread: bool,
    dice: Dice,
    faults: Faults,
}

/// What the daemon has while it is connected.
struct Link {
    ring: ByteRing<Reversed<ConsoleLayout>, DaemonPage>,
    port: u32,
}

impl std::fmt::Debug for MockConsoled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MockConsoled")
    }
}

impl MockConsoled {
    /// Gives a guest its first console, as the toolstack does, and serves it from domain 0. The mock of event
    /// channels must be installed.
    ///
    /// # Panics
    /// When the guest has a console already.
    pub fn connect(xen: &MockXen, guest: &MockDomain) -> Self {
        Self::connect_from(xen, guest, DomId(0))
    }

    /// As [`connect`](Self::connect), with a daemon in any domain.
    ///
    /// # Panics
    /// When the guest has a console already.
    pub fn connect_from(xen: &MockXen, guest: &MockDomain, home: DomId) -> Self {
        let page = guest.special_page(CONSOLE_GFN);
        let home = xen.domain(home);
        let local = event::alloc_unbound(guest, home.id()).expect("a port for the guest");
        let port = event::bind_interdomain(&home, guest.id(), local).expect("a port for the daemon");
        guest.set_hvm_param(HvmParam::CONSOLE_PFN, CONSOLE_GFN.0);
        guest.set_hvm_param(HvmParam::CONSOLE_EVTCHN, local.into());
        let ring = ByteRing::new(DaemonPage::special(page)).expect("a page is large enough");
        Self::start(guest, &home, Some(Link { ring, port }))
    }

    fn start(guest: &MockDomain, home: &MockDomain, link: Option<Link>) -> Self {
        let home = home.inside();
        home.ensure_shared_info();
        let daemon = Self(Arc::new(Mutex::new(State {
            guest: guest.inside(),
            home,
            link,
            #[cfg(feature = "xenbus")]
            device: None,
            output: Vec::new(),
            input: Vec::new(),
            looks: false,
            stalled: false,
            unread: false,
            dice: Dice::new(0),
            faults: Faults::default(),
        })));
        let actor = daemon.clone();
        guest.xen().add_actor("consoled", move |_| actor.state().step());
        let hook = daemon.clone();
        guest.xen().on_migration(move |domain, _| {
            let mut state = hook.state();
            // The handle that a daemon has is one to the new domain.
            if state.guest.id() == domain.id() {
                state.migrated();
            }
        });
        daemon
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the guest has written so far.
    pub fn output(&self) -> Vec<u8> {
        self.state().output.clone()
    }

    /// What the guest has written since this was asked last.
    pub fn take_output(&self) -> Vec<u8> {
        core::mem::take(&mut self.state().output)
    }

    /// Types bytes; the guest gets them as fast as it reads.
    pub fn type_in(&self, bytes: &[u8]) {
        self.state().input.extend_from_slice(bytes);
    }

    /// How many bytes were typed that are not in the console yet.
    pub fn untyped(&self) -> usize {
        self.state().input.len()
    }

    /// A daemon that hangs: reads and writes nothing until it is told otherwise.
    pub fn stall(&self, stalled: bool) {
        self.state().stalled = stalled;
    }

    /// A reader that hangs: what the guest writes stays in the console until this is told otherwise. Typing goes on, and so
    /// does the handshake.
    pub fn stall_reader(&self, stalled: bool) {
        let mut state = self.state();
        state.unread = stalled;
        // What was not read meanwhile is looked at without another event.
        state.looks |= !stalled;
    }

    /// What goes wrong from now on, and when: the same every time for the same dice.
    pub fn set_faults(&self, dice: Dice, faults: Faults) {
        let mut state = self.state();
        (state.dice, state.faults) = (dice, faults);
    }

    /// What the daemon says of whether it serves the console (`XENCONSOLE_CONNECTED`, `_DISCONNECTED`). It sends an event
    /// with that. A daemon that has no page says nothing.
    pub fn say_connected(&self, connected: bool) {
        let flag = if connected { ConsoleLayout::CONNECTED } else { ConsoleLayout::DISCONNECTED };
        let mut state = self.state();
        let state = &mut *state;
        if let Some(link) = &mut state.link {
            link.ring.set_word(ConsoleLayout::CONNECTION, flag.into()).expect("a word of the page");
            // Fails when the guest has closed its end, which is its own affair.
            let _ = event::send(&state.home, link.port);
        }
    }

    /// A daemon that lies: writes any value to a word of the page (offsets as in `io/console.h`).
    ///
    /// # Panics
    /// When the console is not connected, or the offset is not in the page.
    pub fn poke(&self, offset: usize, value: u32) {
        let mut state = self.state();
        let link = state.link.as_mut().expect("a connected console");
        link.ring.set_word(offset, value).expect("an aligned offset in the page");
    }
}

impl State {
    /// The guest goes on as a new domain, whose console the toolstack gives this daemon: the page is empty, and the port
    /// another. What was in the page is taken first, unless the daemon hangs.
    fn migrated(&mut self) {
        #[cfg(feature = "xenbus")]
        if self.device.is_some() {
            return self.plug_again();
        }
        let Some(mut link) = self.link.take() else { return };
        let mut buf = [0; 2048];
        while !self.stalled && !self.unread {
            match link.ring.read(&mut buf) {
                Ok(count @ 1..) => self.output.extend_from_slice(&buf[..count]),
                _ => break,
            }
        }
        let _ = event::close(&self.home, link.port);
        let local = event::alloc_unbound(&self.guest, self.home.id()).expect("a port for the guest");
        let port =
            event::bind_interdomain(&self.home, self.guest.id(), local).expect("a port for the daemon");
        self.guest.set_hvm_param(HvmParam::CONSOLE_EVTCHN, local.into());
        let mut page = link.ring.into_inner();
        page.mem().write_bytes(0, &[0; PAGE_SIZE]).expect("a page");
        let ring = ByteRing::new(page).expect("a page is large enough");
        (self.link, self.looks) = (Some(Link { ring, port }), true);
    }

    fn step(&mut self) -> bool {
        if self.stalled {
            return false;
        }
        #[cfg(feature = "xenbus")]
        if self.shake_hands() {
            return true;
        }
        self.serve()
    }

    fn serve(&mut self) -> bool {
        let id = self.guest.id();
        let Some(link) = &mut self.link else { return false };
        self.looks |= took_event(&self.home, link.port);
        let reads = self.looks && !self.unread;
        if !reads && self.input.is_empty() {
            return false;
        }
        if self.dice.hit(self.faults.stalls) {
            return false;
        }
        let part = |len: usize, short: Chance| match self.dice.hit(short) {
            true => self.dice.below(len as u64 + 1) as usize,
            false => len,
        };
        let mut buf = [0; 2048];
        let room = part(buf.len(), self.faults.short_read);
        let read = if reads { link.ring.read(&mut buf[..room]).unwrap_or(0) } else { 0 };
        if read > 0 {
            let text = buf[..read].escape_ascii().to_string();
            self.guest.xen().trace(|| format!("consoled: {id} wrote \"{text}\""));
        }
        self.output.extend_from_slice(&buf[..read]);
        let len = part(self.input.len(), self.faults.short_write);
        let written = link.ring.write(&self.input[..len]).unwrap_or(0);
        self.input.drain(..written);
        if written > 0 {
            self.guest.xen().trace(|| format!("consoled: typed {written} bytes to {id}"));
        }
        if self.dice.hit(self.faults.index_jump) {
            let ours = [ConsoleLayout::IN_INDICES.1, ConsoleLayout::OUT_INDICES.0];
            let offset = ours[self.dice.below(2) as usize];
            let value = self.dice.next_u64() as u32;
            self.guest.xen().trace(|| format!("consoled: index at {offset} jumps to {value}"));
            link.ring.set_word(offset, value).expect("an index");
        }
        if read + written > 0 || self.dice.hit(self.faults.spurious_event) {
            // Fails when the guest has closed its end, which is its own affair.
            let _ = event::send(&self.home, link.port);
        }
        self.looks = link.ring.readable().is_ok_and(|count| count > 0);
        read + written > 0
    }
}

/// Whether an event came since the last look.
fn took_event(home: &MockDomain, port: u32) -> bool {
    let Some(shared) = home.shared_info() else { return false };
    let bit = 1 << (port % 64);
    let word = shared.evtchn_pending(port as usize / 64);
    word.is_some_and(|word| word.fetch_and(!bit, Ordering::SeqCst) & bit != 0)
}

/// The guest's view of event channels, for tests and examples that need no more than a console.
///
/// # Panics
/// When the machine has no memory left.
pub fn guest(xen: &MockXen, id: DomId) -> (MockDomain, EventChannels<MockDomain>) {
    let domain = xen.domain(id);
    let token = domain.boot().expect("memory for a token");
    let events = EventChannels::new(&token).expect("event channels");
    (domain, events)
}
