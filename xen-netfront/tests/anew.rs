//! A device that the toolstack makes anew, at any moment of its handshake.
#![cfg(feature = "mock")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{GUEST, HOST, Machine, frame};
use xen_netfront::State;
use xen_netfront::mock::Options;
use xen_xenstore::Xenstore;

/// The toolstack takes the device away and makes another one in its place the so many-th time that it has the processor. Returns whether it
/// came to that while the guest connected, and whether the guest noticed.
fn made_anew_at(moment: usize) -> (bool, bool) {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let (mut turn, toolstack, done) = (0, back.clone(), Arc::new(AtomicBool::new(false)));
    let acted = Arc::clone(&done);
    machine.xen.add_actor("toolstack", move |_| {
        turn += 1;
        if turn == moment {
            toolstack.force_detach();
            toolstack.come_back();
            acted.store(true, Ordering::Relaxed);
        }
        turn == moment
    });
    let first = machine.connect(&mut xs);
    let (came, noticed) = (done.load(Ordering::Relaxed), first.is_err());
    let mut front = match first {
        Ok(front) => front,
        // Until the backend has been told anything the two cannot be told apart, and the second may have been closed with the first.
        Err(_) => {
            assert_eq!((machine.grants.stats().in_use, machine.store.watches(machine.guest.id())), (0, 0));
            machine.connect(&mut xs).unwrap()
        }
    };
    machine.run();
    if front.service(&mut xs).unwrap() != State::Connected {
        front.reconnect(&mut xs, machine.soon()).unwrap();
    }
    front.transmit(&frame(HOST, GUEST, 70, 1)).unwrap();
    front.publish().unwrap();
    machine.run();
    assert_eq!(machine.switch.receive().unwrap().bytes, frame(HOST, GUEST, 70, 1));
    assert_eq!(back.complaints(), [""; 0]);
    (came, noticed)
}

#[test]
fn whenever_that_is_the_next_one_works() {
    let moments: Vec<_> = (1..).map(made_anew_at).take_while(|(came, _)| *came).collect();
    let noticed = moments.iter().filter(|(_, noticed)| *noticed).count();
    assert!(moments.len() > 5 && noticed > 0, "{} moments, {noticed} noticed", moments.len());
}
