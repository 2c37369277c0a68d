//! The work of a guest as tasks of one executor, on any platform: a web server by `embassy-net`, a disk with many requests under
//! way, a watch on xenstore, commands on the console, and devices that come and go.
//!
//! | task | |
//! |---|---|
//! | `tick` | every 10 ms; notes how late it was |
//! | `run` of the store | the connection to xenstore |
//! | `obey` | what the toolstack asks for |
//! | `message` | the node `data/message` |
//! | `look_after_card`, `look_after_disk` | connect the device, follow its backend, connect it again |
//! | `network`, `address` | the stack, and what address it has |
//! | `serve` | three of them, each with one connection after the other |
//! | `command` | what is typed on the console |
#![no_std]

extern crate alloc;

mod command;
mod control;
mod disk;
mod figures;
mod http;
mod network;

#[cfg(doctest)]
#[doc = include_str!("../../../docs/async.md")]
mod document {}

use alloc::boxed::Box;
use alloc::string::String;
use core::cell::{Cell, RefCell};
use core::future::Future;

use embassy_executor::Spawner;
use embassy_executor::raw::TaskStorage;
use xen_blkfront::Disk;
use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::{Platform, Wait};
use xen_netfront::Card;
use xen_xenstore::Xenstore;
use xen_xenstore::shared::SharedStore;

use figures::Figures;

/// How a guest ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// For good.
    PowerOff,
    /// To be started again.
    Reboot,
}

/// What the guest's user sits at.
pub trait Terminal {
    /// Reads what was typed, or waits until there is something.
    fn read(&self, buf: &mut [u8]) -> impl Future<Output = Result<usize, xen_console::Error>>;

    /// Writes text, and waits for room.
    fn write_text(&self, text: &str) -> impl Future<Output = Result<(), xen_console::Error>>;
}

impl<P: Platform> Terminal for xen_console::SharedConsole<'_, P> {
    async fn read(&self, buf: &mut [u8]) -> Result<usize, xen_console::Error> {
        self.read(buf).await
    }

    async fn write_text(&self, text: &str) -> Result<(), xen_console::Error> {
        self.write_text(text).await
    }
}

/// What the tasks share.
pub struct Domain<P: Platform + Wait + 'static> {
    events: &'static EventChannels<P>,
    grants: &'static GrantTable<P>,
    store: SharedStore<'static, P>,
    card: Card<'static, P>,
    disk: Disk<'static, P>,
    figures: Figures,
    /// What `data/message` says.
    message: RefCell<String>,
    ending: Cell<Option<Ending>>,
}

impl<P: Platform + Wait + 'static> Domain<P> {
    /// A domain whose devices are not connected yet. It stays.
    pub fn new(
        events: &'static EventChannels<P>,
        grants: &'static GrantTable<P>,
        store: Xenstore<'static, P>,
    ) -> &'static Self {
        Box::leak(Box::new(Self {
            events,
            grants,
            store: SharedStore::new(store),
            card: Card::new(),
            disk: Disk::new(),
            figures: Figures::default(),
            message: RefCell::default(),
            ending: Cell::new(None),
        }))
    }

    /// How it is to end, once somebody has asked for that.
    pub fn ending(&self) -> Option<Ending> {
        self.ending.get()
    }

    /// By how much the task that is to run every 10 ms was late at the most.
    pub fn latest(&self) -> core::time::Duration {
        core::time::Duration::from_micros(self.figures.latest.get().as_micros())
    }

    /// How often that task has run.
    pub fn ticks(&self) -> u64 {
        self.figures.ticks.get()
    }

    /// Starts all tasks.
    pub fn start(&'static self, spawner: Spawner, terminal: &'static impl Terminal) {
        start(spawner, figures::tick(&self.figures));
        control::start(self, spawner);
        start(spawner, command::run(self, terminal));
        network::start(self, spawner);
    }
}

/// Starts a task whose type depends on the platform's, which embassy's macro cannot.
fn start<F: Future<Output = ()> + 'static>(spawner: Spawner, future: F) {
    let task: &'static TaskStorage<F> = Box::leak(Box::new(TaskStorage::new()));
    if let Ok(token) = task.spawn(move || future) {
        spawner.spawn(token);
    }
}

impl<P: Platform + Wait> core::fmt::Debug for Domain<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Domain").field("ending", &self.ending).finish_non_exhaustive()
    }
}
