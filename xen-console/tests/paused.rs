//! A guest that is paused while a secondary console connects, begins anew or ends gives the backend the time that was left.
#![cfg(all(feature = "mock", feature = "xenbus"))]

use std::time::Duration;

use xen_console::mock::MockConsoled;
use xen_console::{Error, SecondaryConsole};
use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::DomId;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::MockXenstored;

const PAUSE: Duration = Duration::from_secs(20 * 60);
/// How long each move of the backend takes, and how long all of them may.
const MOVE: Duration = Duration::from_millis(1200);
const LIMIT: Duration = Duration::from_secs(9);
/// Between two of the guest's turns: questions to xenstore take little of a move.
const LOOK: Duration = Duration::from_millis(15);

struct Machine {
    xen: MockXen,
    guest: MockDomain,
    store: MockXenstored,
    events: EventChannels<MockDomain>,
    grants: GrantTable<MockDomain>,
}

impl Machine {
    fn new() -> Self {
        let xen = MockXen::new();
        xen_gnttab::mock::install(&xen);
        xen_evtchn::mock::install(&xen);
        let store = MockXenstored::new(&xen);
        let guest = xen.domain(DomId(1));
        store.connect(&guest);
        let token = guest.boot().unwrap();
        let (events, grants) = (EventChannels::new(&token).unwrap(), GrantTable::new(&token).unwrap());
        Self { xen, guest, store, events, grants }
    }

    fn connect<'x>(
        &'x self,
        xs: &mut Xenstore<'x, MockDomain>,
    ) -> Result<SecondaryConsole<'x, MockDomain>, Error> {
        SecondaryConsole::connect(xs, &self.events, &self.grants, 1, self.xen.now() + LIMIT)
    }

    /// A backend that takes its time, and a pause of the whole machine at one of the guest's turns.
    fn slow(&self, back: &MockConsoled, turns: u32) {
        back.stall(true);
        let (back, mut turn, mut due) = (back.clone(), 0, self.xen.now() + MOVE);
        self.xen.add_actor("time", move |xen| {
            turn += 1;
            if turn == turns {
                xen.advance(PAUSE);
                due += PAUSE;
            }
            let moves = xen.now() >= due;
            back.stall(!moves);
            if moves {
                due = xen.now() + MOVE;
            }
            xen.advance(LOOK);
            true
        });
    }
}

#[test]
fn while_it_connects() {
    for turns in (0..200).step_by(5) {
        let machine = Machine::new();
        let back = MockConsoled::attach(&machine.store, &machine.guest, 1);
        // Before the backend has made its first move.
        machine.slow(&back, turns);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let console = machine.connect(&mut xs);
        assert!(console.is_ok(), "{turns}: {:?}", console.err());
    }
}

#[test]
fn while_it_begins_anew_or_ends() {
    for turns in (0..500).step_by(11) {
        for ends in [false, true] {
            let machine = Machine::new();
            let back = MockConsoled::attach(&machine.store, &machine.guest, 1);
            let mut xs = Xenstore::new(&machine.events).unwrap();
            let mut console = machine.connect(&mut xs).unwrap();
            machine.slow(&back, turns);
            let end = machine.xen.now() + LIMIT;
            let outcome = if ends { console.close(&mut xs, end) } else { console.reconnect(&mut xs, end) };
            assert_eq!(outcome, Ok(()), "{turns}, ends: {ends}");
        }
    }
}

#[test]
fn a_backend_that_goes_on_while_the_guest_is_paused_is_met_connected() {
    let machine = Machine::new();
    let back = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let (guest, mut looks) = (machine.guest.inside(), 0);
    machine.xen.add_actor("toolstack", move |_| {
        looks += 1;
        if looks % 8 == 0 && looks < 100 {
            guest.pause_for(PAUSE);
        }
        false
    });
    let mut console = machine.connect(&mut xs).unwrap();
    assert!(machine.xen.now() > PAUSE);
    console.console().unwrap().write_all(b"here", LIMIT).unwrap();
    machine.xen.run_until_idle(100);
    assert_eq!(back.output(), b"here");
}
