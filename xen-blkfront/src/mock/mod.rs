//! A blkback for tests on the host: a disk in memory or in a file behind the real protocol.
//!
//! It is served by [a domain](Options::domain), takes part in the handshake by a [`MockXenstored`], and maps the guest's pages by the
//! mock of the grant table. It looks at a ring only when it got an event for it, so a driver that forgets one hangs here
//! as it would on Xen. What it offers is said by [`Options`]; what it does wrong by [`Fault`] (the next response) and
//! [`Faults`] (anything, by chance from a seed). See the crate's first page for an example.

mod backend;
mod faults;
mod link;
pub mod model;
mod options;
mod perform;
mod serve;
mod storage;
mod toolstack;
mod word;

use std::fs::File;
use std::io;
use std::string::{String, ToString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use xen_hypercall::mock::{Dice, MockDomain};
use xen_xenstore::mock::{MockXenstored, Then};

use crate::abi::{Request, SECTOR};
use backend::Backend;
use storage::Storage;

pub use faults::{Fault, Faults};
pub use options::{Discard, Options, Order};

/// A backend for one disk of one guest. Clones are handles to the same one.
#[derive(Clone)]
pub struct MockBlkback(Arc<Mutex<Backend>>);

impl std::fmt::Debug for MockBlkback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MockBlkback")
    }
}

impl MockBlkback {
    /// Gives a guest a disk, as the toolstack does, and serves it out of memory. The mocks of event
    /// channels and grant tables must be installed.
    ///
    /// # Panics
    /// When the size does not fit this machine's memory.
    pub fn new(store: &MockXenstored, guest: &MockDomain, index: u32, options: Options) -> Self {
        let len = usize::try_from(options.sectors).expect("a small disk") * SECTOR;
        Self::with_storage(store, guest, index, options, Storage::memory(len, options.volatile_cache))
    }

    /// Like [`new`](Self::new), with the disk's bytes in a file that can be read and written. Its length is the disk's,
    /// less a part of a sector at the end; [`Options::sectors`] means nothing.
    ///
    /// # Errors
    /// When the file's length cannot be found out.
    pub fn with_file(
        store: &MockXenstored,
        guest: &MockDomain,
        index: u32,
        options: Options,
        file: File,
    ) -> io::Result<Self> {
        let whole = u64::from(options.sector_size.max(SECTOR as u32));
        let len = file.metadata()?.len() / whole * whole;
        let options = Options { sectors: len / SECTOR as u64, ..options };
        let storage = Storage::file(file, len, options.volatile_cache);
        Ok(Self::with_storage(store, guest, index, options, storage))
    }

    fn with_storage(
        store: &MockXenstored,
        guest: &MockDomain,
        index: u32,
        options: Options,
        storage: Storage,
    ) -> Self {
        let backend = Self(Arc::new(Mutex::new(Backend::new(store, guest, index, options, storage))));
        let actor = backend.clone();
        guest.xen().add_actor("blkback", move |_| actor.state().step());
        let hook = backend.clone();
        guest.xen().on_migration(move |domain, _| {
            let mut state = hook.state();
            // The handle that a backend has is one to the new domain.
            if state.guest.id() == domain.id() {
                state.migrated();
            }
        });
        backend
    }

    /// What the backend is like from the guest's next migration on, in another domain perhaps. The disk is the same, of
    /// another size if the options say so. It does not hang, whatever the one of before does.
    pub fn set_next(&self, options: Options) {
        self.state().next = Some(options);
    }

    fn state(&self) -> MutexGuard<'_, Backend> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills the disk from its beginning.
    ///
    /// # Panics
    /// When it is too small, or its file cannot be written.
    pub fn load(&self, content: &[u8]) {
        let mut state = self.state();
        state.storage.load(content).expect("a disk that is large enough and can be written");
    }

    /// What is on the disk, as the guest would read it.
    ///
    /// # Panics
    /// When its file cannot be read.
    pub fn disk(&self) -> Vec<u8> {
        self.state().storage.content().expect("a disk that can be read")
    }

    /// The power fails: of the writes that were not flushed (with [`Options::volatile_cache`]) any number is lost,
    /// sector by sector, and the others may have happened in any order. Returns how many sectors' writes were lost.
    /// The backend itself goes on; [`vanish`](Self::vanish) before, and [`come_back`](Self::come_back) after, is a crash
    /// of its machine.
    ///
    /// # Panics
    /// When the disk's file cannot be written.
    pub fn power_loss(&self, dice: &Dice) -> usize {
        self.state().storage.power_loss(dice).expect("a disk that can be written")
    }

    /// The requests served so far, in the order in which they were; of very many the last.
    pub fn served(&self) -> Vec<Request> {
        self.state().served.clone()
    }

    /// What the guest did that the protocol does not allow.
    pub fn complaints(&self) -> Vec<String> {
        self.state().complaints.clone()
    }

    /// Gives a node of the backend another value when it writes it next, or none. The backend keeps to what it told: it serves
    /// what its nodes said when it connected, and [complains](Self::complaints) about a guest that does not keep to that. So a
    /// disk whose nodes promise more is one that has more, but for its size: beyond its bytes requests fail.
    pub fn lie(&self, node: &str, value: Option<&str>) {
        self.state().lies.push((node.to_string(), value.map(ToString::to_string)));
    }

    /// Spoils the next response that is not spoilt yet.
    pub fn fault(&self, fault: Fault) {
        self.state().faults.push_back(fault);
    }

    /// Lets the backend do things wrong by chance from now on.
    pub fn set_faults(&self, dice: Dice, faults: Faults) {
        self.state().chances = Some((dice, faults));
    }

    /// How many faults happened by chance so far.
    pub fn faults_hit(&self) -> u64 {
        self.state().hits
    }

    /// How many faults happened by chance so far that may make the guest believe what is not so: that a request was done
    /// which was not, or another one.
    pub fn lies_hit(&self) -> u64 {
        self.state().lied
    }

    /// How many responses no guest may believe, of those sent since the guest connected last: they name no request under
    /// way, or another operation than the request's. None when nobody knows what of its ring the guest sees.
    pub fn incredible(&self) -> Option<u64> {
        self.state().link.as_ref().map_or(Some(0), |link| link.incredible)
    }

    /// A backend that hangs: neither serves nor answers anything until it is told otherwise.
    pub fn stall(&self, stalled: bool) {
        self.state().stalled = stalled;
    }

    /// A backend that keeps pages mapped whatever happens, until it is told otherwise.
    pub fn hold(&self, holds: bool) {
        self.state().hold(holds);
    }

    /// The disk has another size from now on. A guest that is connected is told as Linux tells it: a new value of
    /// `sectors`, then the same `state` once more.
    ///
    /// # Panics
    /// When the disk's file cannot be resized.
    pub fn resize(&self, sectors: u64) {
        self.state().resize(sectors).expect("a disk that can be resized");
    }

    /// The toolstack takes the disk away (`online` is 0): the backend asks the guest to close it.
    pub fn detach(&self) {
        self.state().detach();
    }

    /// A toolstack that looks at the states from now on: when both sides are Closed, it does this.
    pub fn follow(&self, then: Then) {
        self.state().then = Some(then);
    }

    /// A hotplug script that hangs, until it is told otherwise: the backend does not connect before `hotplug-status` is
    /// `connected`.
    pub fn stall_hotplug(&self, stalled: bool) {
        self.state().unplugged = stalled;
    }

    /// The backend is closed all at once: it lets go of everything and says so, without having asked.
    pub fn drop_out(&self) {
        self.state().drop_out();
    }

    /// The backend's driver is started anew under a guest that is connected. As Linux' does, it takes up the guest's rings
    /// where the one before has left them, and says only with its next move that it is connected; until then it says that
    /// it waits.
    pub fn restart(&self) {
        self.state().restart();
    }

    /// The backend's domain dies: its nodes are gone, and nothing is answered any more.
    pub fn vanish(&self) {
        self.state().vanish();
    }

    /// After [`vanish`](Self::vanish): the domain is there again, and its backend waits for the guest to begin anew. One that
    /// was not away begins anew all at once.
    pub fn come_back(&self) {
        self.state().come_back();
    }

    /// Whether the backend's domain is dead.
    pub fn is_gone(&self) -> bool {
        self.state().gone
    }

    /// Whether the backend is connected to the guest.
    pub fn is_connected(&self) -> bool {
        self.state().link.is_some()
    }
}
