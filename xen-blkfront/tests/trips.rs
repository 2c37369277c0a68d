//! How often a handshake waits for xenstore: what can be asked at once is.
#![cfg(feature = "mock")]

mod common;

use common::Machine;
use xen_blkfront::mock::Options;
use xen_hypercall::mock::MockDomain;
use xen_hypercall::sched::Resumed;
use xen_xenstore::Xenstore;

/// How often the daemon was told that there is something for it, since the channel was bound.
fn trips(xs: &Xenstore<'_, MockDomain>) -> u64 {
    xs.channel().stats().notifications
}

#[test]
fn a_handshake_makes_few_trips() {
    let machine = Machine::new();
    machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let before = trips(&xs);
    let mut front = machine.connect(&mut xs).unwrap();
    let connected = trips(&xs) - before;
    // The daemon is another one afterwards, and so is the channel. Trips of xenstore itself are among these.
    assert_eq!(machine.suspend(&mut xs, &mut front), (Resumed::InNewDomain, 0));
    assert_eq!((connected, trips(&xs)), (11, 13), "more cost time, and fewer belong here");
}
