//! A guest that is paused while its disk connects, begins anew or ends gives the backend the time that was left.
#![cfg(feature = "mock")]

mod common;

use std::time::Duration;

use common::{Machine, VBD, small};
use xen_blkfront::mock::{MockBlkback, Options};
use xen_blkfront::{BlkFront, Config, Error};
use xen_evtchn::Deadline;
use xen_hypercall::mock::MockDomain;
use xen_xenstore::Xenstore;

const PAUSE: Duration = Duration::from_secs(20 * 60);
/// How long all moves of the backend may take.
const LIMIT: Duration = Duration::from_secs(9);

/// A backend that takes its time, and a pause of the whole machine at one of the guest's turns.
fn slow(machine: &Machine, back: &MockBlkback, turns: u32) {
    let back = back.clone();
    machine.xen.slow_down(turns, move |stalled| back.stall(stalled));
}

fn connect<'x>(
    machine: &'x Machine,
    xs: &mut Xenstore<'x, MockDomain>,
) -> Result<BlkFront<'x, MockDomain>, Error> {
    let (end, config) = (machine.xen.now() + LIMIT, Config { timeout: LIMIT, ..small() });
    BlkFront::connect_with(xs, &machine.events, &machine.grants, VBD, end, config)
}

fn in_halves<'x>(
    machine: &'x Machine,
    xs: &mut Xenstore<'x, MockDomain>,
) -> Result<BlkFront<'x, MockDomain>, Error> {
    let mut end = Deadline::new(machine.xen.now() + LIMIT);
    BlkFront::begin(xs, &machine.events, &machine.grants, VBD, &mut end, small())?.finish(xs, &mut end)
}

#[test]
fn while_it_connects() {
    for turns in (0..200).step_by(5) {
        let machine = Machine::new();
        let back = machine.disk(Options::default());
        // Before the backend has made its first move.
        slow(&machine, &back, turns);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let disk = if turns % 2 == 0 { connect(&machine, &mut xs) } else { in_halves(&machine, &mut xs) };
        assert!(disk.is_ok(), "{turns}: {:?}", disk.err());
    }
}

/// A disk at work with two reads that are under way, and from now on a slow backend.
fn at_work<'x>(
    machine: &'x Machine,
    xs: &mut Xenstore<'x, MockDomain>,
    back: &MockBlkback,
    turns: u32,
) -> (BlkFront<'x, MockDomain>, Duration) {
    let mut disk = connect(machine, xs).unwrap();
    for lba in [0, 1] {
        let _ticket = disk.submit_read(lba, 1).unwrap();
    }
    disk.publish().unwrap();
    slow(machine, back, turns);
    (disk, machine.xen.now() + LIMIT)
}

#[test]
fn while_it_begins_anew() {
    for turns in (0..500).step_by(11) {
        let machine = Machine::new();
        let back = machine.disk(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let (mut disk, end) = at_work(&machine, &mut xs, &back, turns);
        assert_eq!(disk.reconnect(&mut xs, end), Ok(()), "{turns}");
    }
}

#[test]
fn while_it_ends() {
    // At first the answers are waited for, which may come with the pause.
    for turns in (0..100).chain((100..500).step_by(11)) {
        let machine = Machine::new();
        let back = machine.disk(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let (disk, end) = at_work(&machine, &mut xs, &back, turns);
        assert_eq!(disk.close(&mut xs, end), Ok(()), "{turns}");
    }
}

#[test]
fn a_backend_that_does_not_move_is_waited_for_no_longer() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    back.stall(true);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let start = machine.xen.now();
    assert!(connect(&machine, &mut xs).is_err());
    assert!(machine.xen.now() - start < LIMIT + Duration::from_secs(1));
}

#[test]
fn a_backend_that_goes_on_while_the_guest_is_paused_is_met_connected() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let (guest, mut looks) = (machine.guest.inside(), 0);
    machine.xen.add_actor("toolstack", move |_| {
        looks += 1;
        if looks % 8 == 0 && looks < 100 {
            guest.pause_for(PAUSE);
        }
        false
    });
    let mut disk = connect(&machine, &mut xs).unwrap();
    assert!(machine.xen.now() > PAUSE && back.is_connected());
    assert_eq!(disk.read(0, &mut [0; 512]), Ok(()));
}
