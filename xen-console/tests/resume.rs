//! Consoles after a resume in a new domain.
#![cfg(all(feature = "mock", feature = "xenbus"))]
#![allow(unsafe_code, reason = "suspends a domain")]

mod common;

use core::fmt::Write;
use std::time::Duration;

use common::acts::{act, faults};
use proptest::prelude::*;
use xen_console::mock::model::Model;
use xen_console::mock::{Faults, MockConsoled};
use xen_console::{Console, Error, SecondaryConsole, State};
use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::hvm::HvmParam;
use xen_hypercall::mock::{Chance, Dice, MockDomain, MockXen};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{DomId, Domain};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::{MockXenstored, Still};
use xen_xenstore::suspend::{Device, Suspension};

const SECOND: Duration = Duration::from_secs(1);

struct World {
    xen: MockXen,
    guest: MockDomain,
    store: MockXenstored,
    token: Domain<MockDomain>,
    events: EventChannels<MockDomain>,
    grants: GrantTable<MockDomain>,
}

impl World {
    fn new() -> Self {
        let xen = MockXen::new();
        xen_evtchn::mock::install(&xen);
        xen_gnttab::mock::install(&xen);
        let store = MockXenstored::new(&xen);
        let guest = xen.domain(DomId(1));
        store.connect(&guest);
        let token = guest.boot().unwrap();
        let (events, grants) = (EventChannels::new(&token).unwrap(), GrantTable::new(&token).unwrap());
        Self { xen, guest, store, token, events, grants }
    }

    fn suspend<'x>(
        &'x self,
        xs: &mut Xenstore<'x, MockDomain>,
        console: &mut Console<'x, MockDomain>,
        devices: &mut impl Device<'x, MockDomain>,
    ) -> (Resumed, usize) {
        let suspension = Suspension {
            domain: &self.token,
            events: &self.events,
            kernel: &Still,
            parts: &mut [&mut &self.grants, console],
            patience: SECOND,
        };
        // SAFETY: one thread, which is between two calls, and no page of another domain is mapped.
        let outcome = unsafe { suspension.run(xs, None, devices) }.unwrap();
        (outcome.resumed, outcome.absent)
    }
}

#[test]
fn a_console_goes_on_in_the_middle_of_a_line() {
    let world = World::new();
    let daemon = MockConsoled::connect(&world.xen, &world.guest);
    let mut xs = Xenstore::new(&world.events).unwrap();
    let mut console = Console::new(&world.events).unwrap();
    write!(console, "first half, ").unwrap();
    // What the daemon has not taken yet when the domain is suspended it takes then.
    console.write(b"untaken, ").unwrap();
    assert_eq!(world.suspend(&mut xs, &mut console, &mut ()), (Resumed::InNewDomain, 0));
    writeln!(console, "second half").unwrap();
    world.xen.run_until_idle(100);
    assert_eq!(String::from_utf8(daemon.output()).unwrap(), "first half, untaken, second half\r\n");
    daemon.type_in(b"hello");
    assert_eq!(console.wait_readable(world.xen.now() + SECOND), Ok(true));
    let mut buf = [0; 8];
    assert_eq!(console.read(&mut buf), Ok(5));
    assert_eq!((console.stats().read, console.stats().written), (5, 34));
    // And again; a checkpoint, too.
    assert_eq!(world.suspend(&mut xs, &mut console, &mut ()), (Resumed::InNewDomain, 0));
    world.xen.set_toolstack(|_| Resumed::InPlace);
    console.write(b"a checkpoint").unwrap();
    assert_eq!(world.suspend(&mut xs, &mut console, &mut ()), (Resumed::InPlace, 0));
    world.xen.run_until_idle(100);
    assert!(daemon.output().ends_with(b"second half\r\na checkpoint"));
}

#[test]
fn what_was_lost_before_is_told_afterwards_at_its_place() {
    let world = World::new();
    let daemon = MockConsoled::connect(&world.xen, &world.guest);
    let mut xs = Xenstore::new(&world.events).unwrap();
    let mut console = Console::new(&world.events).unwrap();
    daemon.stall_reader(true);
    while console.write_text(format_args!("a line that fills the console\n"), Duration::ZERO) == Ok(true) {}
    assert_eq!(console.stats().dropped_lines, 1);
    world.suspend(&mut xs, &mut console, &mut ());
    daemon.stall_reader(false);
    writeln!(console, "after").unwrap();
    world.xen.run_until_idle(100);
    let text = String::from_utf8(daemon.output()).unwrap();
    assert!(text.ends_with("after\r\n") && text.contains("lost"), "{text:?}");
}

#[test]
fn a_console_of_the_life_before_writes_into_nobodys_page() {
    let world = World::new();
    let daemon = MockConsoled::connect(&world.xen, &world.guest);
    let mut console = Console::new(&world.events).unwrap();
    console.write(b"before").unwrap();
    world.xen.run_until_idle(10);
    // SAFETY: one thread, which is between two calls, and no page of another domain is mapped.
    assert_eq!(unsafe { world.token.suspend() }, Ok(Resumed::InNewDomain));
    assert_eq!(console.write(b"stale"), Err(Error::Stale));
    assert_eq!(console.read(&mut [0; 4]), Err(Error::Stale));
    console.emergency(b"stale");
    assert!(console.resume().is_err(), "the events come first");
    world.events.resume().unwrap();
    world.guest.set_hvm_param(HvmParam::CONSOLE_PFN, 0);
    assert_eq!(console.resume(), Err(Error::NoConsole));
    assert_eq!(console.write(b"stale"), Err(Error::Stale));
    world.guest.set_hvm_param(HvmParam::CONSOLE_PFN, 0xF_EFFF);
    console.resume().unwrap();
    console.resume().unwrap();
    console.write(b" after").unwrap();
    world.xen.run_until_idle(10);
    let output = String::from_utf8(daemon.output()).unwrap();
    assert!(output.starts_with("before") && output.ends_with(" after"), "{output:?}");
    assert!(!output.contains("[stale"), "{output:?}");
}

#[test]
fn consoles_with_a_number_shake_hands_again() {
    let world = World::new();
    let _first = MockConsoled::connect(&world.xen, &world.guest);
    let [one, two, three] = [1, 2, 3].map(|index| MockConsoled::attach(&world.store, &world.guest, index));
    let mut xs = Xenstore::new(&world.events).unwrap();
    let mut console = Console::new(&world.events).unwrap();
    let soon = || world.xen.now() + SECOND;
    let mut serial = [1, 2, 3].map(|index| {
        SecondaryConsole::connect(&mut xs, &world.events, &world.grants, index, soon()).unwrap()
    });
    one.stall_reader(true);
    serial[0].console().unwrap().write(b"not taken by the first backend, ").unwrap();
    // The third is unplugged when the domain is saved.
    three.crash();
    world.xen.run_until_idle(100);
    assert_eq!(serial[2].service(&mut xs), Ok(State::Closed));
    let (watches, pages) = (world.store.watches(DomId(1)), world.guest.pages_in_use());
    assert_eq!(world.suspend(&mut xs, &mut console, &mut serial), (Resumed::InNewDomain, 0));
    one.stall_reader(false);
    serial[0].console().unwrap().write(b"but by the next").unwrap();
    serial[1].console().unwrap().write(b"two").unwrap();
    world.xen.run_until_idle(100);
    assert_eq!(String::from_utf8(one.output()).unwrap(), "not taken by the first backend, but by the next");
    assert_eq!(two.output(), b"two");
    assert_eq!(
        serial.each_ref().map(SecondaryConsole::state),
        [State::Connected, State::Connected, State::Closed]
    );
    assert!(world.store.watches(world.guest.id()) <= watches);
    assert_eq!(world.guest.pages_in_use(), pages);
    // A backend that does not come.
    two.stall(true);
    assert_eq!(world.suspend(&mut xs, &mut console, &mut serial), (Resumed::InNewDomain, 1));
    assert_eq!(serial[1].state(), State::Closed);
    two.stall(false);
    serial[1].reconnect(&mut xs, soon()).unwrap();
    serial[1].console().unwrap().write(b", again").unwrap();
    world.xen.run_until_idle(100);
    assert_eq!(two.output(), b"two, again");
}

/// Lets the domain go on in a new one when it is suspended, or where it was.
fn goes_on(world: &World, migrate: bool) {
    world.xen.set_toolstack(move |domain| match migrate {
        true => {
            domain.xen().migrate(domain);
            Resumed::InNewDomain
        }
        false => Resumed::InPlace,
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn streams_go_on_whenever_the_domain_is_suspended(
        lives in prop::collection::vec((prop::collection::vec(act(), 0..20), any::<bool>()), 1..4),
        second in any::<bool>(),
        faults in faults(),
        seed in any::<u64>(),
    ) {
        let world = World::new();
        let mut xs = Xenstore::new(&world.events).unwrap();
        let first = MockConsoled::connect(&world.xen, &world.guest);
        let mut console = Console::new(&world.events).unwrap();
        let daemon = if second { MockConsoled::attach(&world.store, &world.guest, 1) } else { first };
        let until = world.xen.now() + SECOND;
        let mut serial = second.then(|| {
            SecondaryConsole::connect(&mut xs, &world.events, &world.grants, 1, until).unwrap()
        });
        daemon.set_faults(Dice::new(seed), faults);
        let mut model = Model::new(&world.guest, &world.events, &daemon);
        if faults.index_jump != Chance::NEVER {
            model.lies();
        }
        for (acts, migrate) in &lives {
            for act in acts {
                match &mut serial {
                    None => model.act(&mut console, act),
                    Some(serial) => {
                        if let Ok(console) = serial.console() {
                            model.act(console, act);
                        }
                    }
                }
            }
            goes_on(&world, *migrate);
            let before = serial.as_ref().map(SecondaryConsole::stats);
            let (resumed, absent) = world.suspend(&mut xs, &mut console, &mut serial);
            prop_assert_eq!(resumed == Resumed::InNewDomain, *migrate);
            match (&mut serial, before) {
                _ if !*migrate => prop_assert_eq!(absent, 0),
                (Some(serial), Some(before)) => {
                    if let Ok(console) = serial.console() {
                        model.reconnected(console, before);
                    }
                }
                _ => model.resumed(&mut console),
            }
        }
        daemon.set_faults(Dice::new(0), Faults::new());
        daemon.stall(false);
        match &mut serial {
            None => model.settle(&mut console),
            Some(serial) => {
                if let Ok(console) = serial.console() {
                    model.settle(console);
                }
            }
        }
    }
}
