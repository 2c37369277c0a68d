//! What goes over the ring at once, and how often the daemon is woken for it.
#![cfg(feature = "mock")]

mod common;

use common::Machine;
use xen_xenstore::mock::Limits;

#[test]
fn the_daemon_is_woken_once_for_a_question() {
    let machine = Machine::new();
    let mut xs = machine.client();
    xs.write("data/a", b"1").unwrap();
    let before = xs.channel().stats().notifications;
    for _ in 0..10 {
        xs.write("data/a", b"value").unwrap();
        xs.read("data/a").unwrap();
    }
    assert_eq!(xs.channel().stats().notifications - before, 20);
}

#[test]
fn a_daemon_that_waits_for_room_is_told_of_it() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let mut limits = Limits::default();
    limits.node_size = 5000;
    machine.store.set_limits(limits);
    for size in [1000, 1007, 1008, 1009, 2000, 4096] {
        let value: Vec<u8> = (0..size).map(|number| number as u8).collect();
        machine.store.write_bytes("/local/domain/1/data/a", &value);
        assert_eq!(xs.read("data/a"), Ok(&*value), "{size}");
    }
    assert_eq!(machine.xen.now().as_nanos(), 0);
}
