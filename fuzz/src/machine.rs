//! A small machine with a guest on it, its xenstore daemon, and a way to write where a peer may write.

#![allow(unsafe_code, reason = "accesses a guest's page as its peer does, and suspends the guest")]

use std::fmt::{Debug, Display};
use std::ops::Deref;
use std::ptr::NonNull;
use std::time::Duration;

use xen_evtchn::EventChannels;
use xen_gnttab::{GrantRef, GrantTable};
use xen_hypercall::hvm::HvmParam;
use xen_hypercall::mock::{MockDomain, MockXen, TraceOnPanic};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{DomId, Domain, Gfn, PAGE_SIZE, Page, Restore, VcpuId};
use xen_ring::{Backing, SharedMem};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::{MockXenstored, Still};
use xen_xenstore::suspend::{Device, Suspension};

use crate::input::Input;

/// The guest, as long as it is not migrated.
pub const GUEST: DomId = DomId(1);
/// How long its devices wait for their backends after a resume.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Who serves its devices.
pub const BACK: DomId = DomId(0);

/// Reads an input, and tries it. When that panics in a test, the input is printed.
pub fn attempt<I: Input>(data: &[u8], run: impl FnOnce(&I)) {
    struct Told<'i>(&'i dyn Debug);
    impl Drop for Told<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("-- the input --\n{:#?}", self.0);
            }
        }
    }
    let Ok(input) = I::arbitrary(&mut arbitrary::Unstructured::new(data)) else { return };
    let told = Told(&input);
    run(&input);
    drop(told);
}

/// A machine without anything but Xen, which goes with this value. It keeps a trace when there is somebody to read it: in
/// tests, and when `XEN_TRACE` is set.
pub struct Xen {
    xen: MockXen,
    _trace: TraceOnPanic,
}

impl Default for Xen {
    fn default() -> Self {
        Self::new()
    }
}

impl Xen {
    /// A fresh one, at time zero.
    pub fn new() -> Self {
        let xen = MockXen::new();
        xen.set_trace(!cfg!(fuzzing) || std::env::var_os("XEN_TRACE").is_some());
        xen_evtchn::mock::install(&xen);
        xen_gnttab::mock::install(&xen);
        Self { _trace: TraceOnPanic::new(&xen), xen }
    }
}

impl Deref for Xen {
    type Target = MockXen;
    fn deref(&self) -> &MockXen {
        &self.xen
    }
}

impl Drop for Xen {
    fn drop(&mut self) {
        self.xen.dismantle();
    }
}

/// A guest with what a device needs.
pub struct Machine {
    /// The guest.
    pub guest: MockDomain,
    /// Its xenstore daemon.
    pub store: MockXenstored,
    /// Its token.
    pub token: Domain<MockDomain>,
    /// Its event channels.
    pub events: EventChannels<MockDomain>,
    /// Its grant table.
    pub grants: GrantTable<MockDomain>,
    /// The machine. It goes last.
    pub xen: Xen,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// A fresh one, at time zero.
    pub fn new() -> Self {
        let xen = Xen::new();
        let store = MockXenstored::new(&xen);
        let guest = xen.domain(GUEST);
        store.connect(&guest);
        let token = guest.boot().expect("the token of a fresh guest");
        let events = EventChannels::new(&token).expect("event channels of a fresh guest");
        let grants = GrantTable::new(&token).expect("the grant table of a fresh guest");
        Self { xen, guest, store, token, events, grants }
    }

    /// So many milliseconds from now.
    pub fn after(&self, milliseconds: u64) -> Duration {
        self.xen.now() + Duration::from_millis(milliseconds)
    }

    /// Lets the far sides act until they have nothing more to do.
    pub fn run(&self) {
        assert!(self.xen.run_until_idle(1000) < 1000, "the far sides never end\n{}", self.xen.trace_text());
        self.events.dispatch(VcpuId(0));
    }

    /// Suspends the guest, which goes on in a new domain or where it was. Returns how many devices did not come along.
    ///
    /// # Panics
    /// If anything but a device does not.
    pub fn suspend<'x>(
        &'x self,
        xs: &mut Xenstore<'x, MockDomain>,
        devices: &mut impl Device<'x, MockDomain>,
        migrate: bool,
    ) -> usize {
        self.suspend_with(xs, &mut [&mut &self.grants], devices, migrate)
    }

    /// [`suspend`](Self::suspend) of a guest with other parts that are set up again, after the event channels and before the devices.
    ///
    /// # Panics
    /// As there.
    pub fn suspend_with<'x: 's, 's>(
        &'x self,
        xs: &mut Xenstore<'x, MockDomain>,
        parts: &'s mut [&'s mut dyn Restore],
        devices: &mut impl Device<'x, MockDomain>,
        migrate: bool,
    ) -> usize {
        self.xen.set_toolstack(move |domain| match migrate {
            true => {
                domain.xen().migrate(domain);
                Resumed::InNewDomain
            }
            false => Resumed::InPlace,
        });
        let suspension = Suspension {
            domain: &self.token,
            events: &self.events,
            kernel: &Still,
            parts,
            patience: PATIENCE,
        };
        let before = self.guest.id();
        // SAFETY: one thread, which is between two calls, and no page of another domain is mapped.
        let outcome = unsafe { suspension.run(xs, None, devices) }.expect("a machine like the one before");
        assert_eq!(outcome.resumed == Resumed::InNewDomain, migrate);
        assert_eq!(self.guest.id() != before, migrate);
        outcome.absent
    }

    /// Suspends the guest, which goes on in a new domain: what is made of its event channels and grants is stale.
    pub fn migrate(&self) {
        // SAFETY: one thread, which is between two calls, and no page of another domain is mapped.
        assert_eq!(unsafe { self.token.suspend() }, Ok(Resumed::InNewDomain));
        self.events.resume().expect("a Xen like the one before");
        self.grants.resume().expect("a Xen like the one before");
    }

    /// Writes to a page that the guest grants to `back`, whose reference is a node's value, as its peer can at any time.
    /// Answers whether there was such a page.
    pub fn poke(&self, back: DomId, node: impl Display, offset: u16, bytes: &[u8]) -> bool {
        let gref = self.store.read(&node.to_string()).and_then(|text| text.parse().ok()).map(GrantRef);
        let offset = usize::from(offset) % (4096 - bytes.len());
        let (back, guest) = (self.xen.domain(back), self.guest.id());
        gref.is_some_and(|gref| xen_gnttab::mock::copy_to(&back, guest, gref, offset, bytes).is_ok())
    }
}

/// A page that the toolstack made for a guest, as the daemon on its other side has it.
pub struct SpecialPage {
    page: NonNull<Page>,
    /// Keeps the page: it is there as long as the guest.
    _guest: MockDomain,
}

// SAFETY: the page belongs to nobody's thread.
unsafe impl Send for SpecialPage {}

impl SpecialPage {
    /// The page whose frame this parameter of the guest has.
    ///
    /// # Panics
    /// When there is none.
    pub fn of(guest: &MockDomain, param: HvmParam) -> Self {
        let page = guest.page_at(Gfn(guest.hvm_param(param))).expect("a page of the toolstack's");
        Self { page, _guest: guest.clone() }
    }
}

impl Backing for SpecialPage {
    fn mem(&mut self) -> SharedMem<'_> {
        // SAFETY: the guest's memory is valid as long as there is a handle to it, which `self` has; both sides access this
        // page by views like this one alone.
        unsafe { SharedMem::new(self.page.cast(), PAGE_SIZE) }
    }
}
