//! In which order a disk's parts go.
#![cfg(feature = "mock")]

mod common;

use std::ptr::NonNull;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::VBD;
use xen_blkfront::mock::{MockBlkback, Options};
use xen_blkfront::{BlkFront, Config};
use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, Domain, Gfn, Hypercall, HypercallNr, Page, PageMemory, SpecialPages, Wait};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::MockXenstored;

/// `EVTCHNOP_close` (`event_channel.h`).
const CLOSE: usize = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Gone {
    Channel,
    Memory,
}

/// A platform that notes what goes.
#[derive(Clone)]
struct Noting(MockDomain, Arc<Mutex<Vec<Gone>>>);

// SAFETY: the inner one keeps the promises.
unsafe impl Hypercall for Noting {
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
        if nr == HypercallNr::EVENT_CHANNEL_OP && args[0] == CLOSE {
            self.1.lock().unwrap().push(Gone::Channel);
        }
        // SAFETY: the caller's promise is the one asked for here.
        unsafe { self.0.hypercall(nr, args) }
    }
}

// SAFETY: the inner one keeps the promises.
unsafe impl PageMemory for Noting {
    fn alloc_pages(&self, count: usize) -> Option<NonNull<Page>> {
        self.0.alloc_pages(count)
    }
    unsafe fn free_pages(&self, first: NonNull<Page>, count: usize) {
        self.1.lock().unwrap().push(Gone::Memory);
        // SAFETY: the caller's promise is the one asked for here.
        unsafe { self.0.free_pages(first, count) };
    }
    fn gfn(&self, page: NonNull<Page>) -> Gfn {
        self.0.gfn(page)
    }
}

// SAFETY: the inner one keeps the promises.
unsafe impl SpecialPages for Noting {
    unsafe fn map_special(&self, gfn: Gfn, count: usize) -> Option<NonNull<Page>> {
        // SAFETY: the caller's promise is the one asked for here.
        unsafe { self.0.map_special(gfn, count) }
    }
}

impl Wait for Noting {
    fn now(&self) -> Duration {
        self.0.now()
    }
    fn wait(&self, deadline: Option<Duration>, is_due: &dyn Fn() -> bool) {
        self.0.wait(deadline, is_due);
    }
}

/// An event that is under way finds the ring and its records, or nothing, whichever way the disk goes.
#[test]
fn the_event_channels_are_closed_before_memory_goes() {
    for way in ["drop", "close", "reconnect", "give up"] {
        let xen = MockXen::new();
        xen_evtchn::mock::install(&xen);
        xen_gnttab::mock::install(&xen);
        let store = MockXenstored::new(&xen);
        let guest = Noting(xen.domain(DomId(1)), Arc::default());
        store.connect(&guest.0);
        let back =
            MockBlkback::new(&store, &guest.0, VBD, Options { max_queues: Some(1), ..Options::plain() });
        // SAFETY: a machine of the mock's, and its only token.
        let domain = unsafe { Domain::new(guest.clone()) }.unwrap();
        let events = EventChannels::new(&domain).unwrap();
        let grants = GrantTable::new(&domain).unwrap();
        let mut xs = Xenstore::new(&events).unwrap();
        let soon = guest.now() + Duration::from_secs(5);
        let begun = BlkFront::begin(&mut xs, &events, &grants, VBD, soon, Config::default()).unwrap();
        let forget = || guest.1.lock().unwrap().clear();
        match way {
            "give up" => {
                forget();
                drop(begun);
            }
            _ => {
                let mut disk = begun.finish(&mut xs, soon).unwrap();
                disk.write(0, &[1; 512]).unwrap();
                // What the backend has mapped goes to the quarantine, which frees it at any time later.
                back.vanish();
                forget();
                match way {
                    "drop" => drop(disk),
                    "close" => drop(disk.close(&mut xs, soon)),
                    _ => {
                        back.come_back();
                        disk.reconnect(&mut xs, soon).unwrap();
                    }
                }
            }
        }
        let gone = guest.1.lock().unwrap().clone();
        let channel = gone.iter().position(|gone| *gone == Gone::Channel);
        let memory = gone.iter().position(|gone| *gone == Gone::Memory);
        assert!(channel.is_some() && memory.is_some() && channel < memory, "{way}: {gone:?}");
    }
}
