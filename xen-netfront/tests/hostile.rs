//! What a network device does with a backend that lies, hangs, closes or dies.
#![cfg(feature = "mock")]

mod common;

use common::{GUEST, HOST, Machine, frame};
use xen_gnttab::Access;
use xen_hypercall::DomId;
use xen_hypercall::mock::MockDomain;
use xen_netfront::mock::{Fault, MockNetback, Options};
use xen_netfront::{Config, Error, FRAME_MAX, Features, FramePage, Mac, NetFront, State, Violation};
use xen_xenstore::Xenstore;

/// Connects, runs `f`, and closes with a backend that still has everything mapped: that is in quarantine, and comes
/// back only when it lets go.
fn with_device(f: impl FnOnce(&Machine, &MockNetback, &mut NetFront<'_, MockDomain>)) {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    machine.run();
    f(&machine, &back, &mut front);
    back.hold(true);
    let _ = front.close(&mut xs, machine.soon());
    let mapped = xen_gnttab::mock::mappings_of(&machine.xen, machine.guest.id());
    assert_eq!(machine.grants.stats().quarantined as usize, mapped);
    back.stall(false);
    machine.xen.run_until_idle(10);
    back.hold(false);
    assert_eq!(machine.grants.reclaim(), mapped);
    assert_eq!(machine.grants.stats().in_use, 0);
}

/// The device is broken, and stays so whatever is tried.
fn assert_broken(front: &mut NetFront<'_, MockDomain>, violation: Violation) {
    let broken = Error::Broken(violation);
    assert_eq!(front.state(), State::Broken(violation));
    assert_eq!(front.transmit(&frame(HOST, GUEST, 60, 0)), Err(broken));
    assert_eq!(front.can_transmit(), Err(broken));
    assert_eq!(front.receive(&mut [0; FRAME_MAX]), Err(broken));
    assert_eq!(front.publish(), Err(broken));
    assert_eq!(front.arm(), Err(broken));
}

/// Sends frames until pages must come back.
fn send_all(machine: &Machine, front: &mut NetFront<'_, MockDomain>) -> Result<(), Error> {
    for i in 0..300 {
        front.transmit(&frame(HOST, GUEST, 60, i as u8))?;
        front.publish()?;
        machine.run();
    }
    Ok(())
}

#[test]
fn an_answer_to_nothing_breaks_the_device() {
    for id in [256, 1000, u16::MAX] {
        with_device(|machine, back, front| {
            back.fault_tx(Fault::Id(id));
            let violation = Violation::Id(id);
            assert_eq!(send_all(machine, front), Err(Error::Broken(violation)));
            assert_broken(front, violation);
        });
        with_device(|machine, back, front| {
            back.fault_rx(Fault::Id(id));
            machine.switch.send(frame(GUEST, HOST, 60, 0));
            machine.run();
            let violation = Violation::Id(id);
            assert_eq!(front.receive(&mut [0; FRAME_MAX]), Err(Error::Broken(violation)));
            assert_broken(front, violation);
        });
    }
}

#[test]
fn an_answer_that_comes_twice_breaks_the_device() {
    with_device(|machine, back, front| {
        for i in 0..256 {
            front.transmit(&frame(HOST, GUEST, 60, i as u8)).unwrap();
        }
        back.fault_tx(Fault::Twice);
        front.publish().unwrap();
        machine.run();
        let Err(Error::Broken(violation @ Violation::Id(_))) = front.can_transmit() else {
            panic!("{:?}", front.state())
        };
        assert_broken(front, violation);
    });
    with_device(|machine, back, front| {
        back.fault_rx(Fault::Twice);
        machine.switch.send(frame(GUEST, HOST, 60, 0));
        machine.run();
        assert_eq!(front.receive(&mut [0; FRAME_MAX]), Ok(Some(60)));
        let answer = front.receive(&mut [0; FRAME_MAX]);
        let Err(Error::Broken(violation @ Violation::Id(_))) = answer else { panic!("{answer:?}") };
        assert_broken(front, violation);
    });
}

#[test]
fn an_index_that_jumps_breaks_the_device() {
    for more in [1, 256, 257, 1 << 31] {
        with_device(|machine, back, front| {
            for i in 0..256 {
                front.transmit(&frame(HOST, GUEST, 60, i as u8)).unwrap();
            }
            back.fault_tx(Fault::Index(more));
            front.publish().unwrap();
            machine.run();
            let answer = front.can_transmit();
            let Err(Error::Broken(violation @ Violation::Ring(_))) = answer else {
                panic!("{more}: {answer:?}")
            };
            assert_broken(front, violation);
        });
        with_device(|machine, back, front| {
            back.fault_rx(Fault::Index(more.max(257)));
            machine.switch.send(frame(GUEST, HOST, 60, 0));
            machine.run();
            let answer = front.receive(&mut [0; FRAME_MAX]);
            let Err(Error::Broken(violation @ Violation::Ring(_))) = answer else {
                panic!("{more}: {answer:?}")
            };
            assert_broken(front, violation);
        });
    }
}

#[test]
fn a_frame_that_is_not_in_its_page_breaks_the_device() {
    for (fault, violation) in [
        (Fault::Offset(4037), Violation::Outside(4037, 60)),
        (Fault::Offset(4096), Violation::Outside(4096, 60)),
        (Fault::Offset(u16::MAX), Violation::Outside(u16::MAX, 60)),
        (Fault::Status(4097), Violation::Outside(0, 4097)),
        (Fault::Status(i16::MAX), Violation::Outside(0, i16::MAX)),
    ] {
        with_device(|machine, back, front| {
            back.fault_rx(fault);
            machine.switch.send(frame(GUEST, HOST, 60, 0));
            machine.run();
            assert_eq!(front.receive(&mut [0; FRAME_MAX]), Err(Error::Broken(violation)));
            assert_broken(front, violation);
        });
    }
}

#[test]
fn more_empty_answers_than_empty_requests_break_the_device() {
    with_device(|machine, back, front| {
        // An answer that means nothing (`NETIF_RSP_NULL`), to a frame.
        back.fault_tx(Fault::Status(1));
        assert_eq!(send_all(machine, front), Err(Error::Broken(Violation::Null)));
        assert_broken(front, Violation::Null);
    });
}

#[test]
fn what_was_not_agreed_on_breaks_the_device() {
    for (flags, violation) in [(4, Violation::Flags(4)), (8, Violation::Extra(1)), (12, Violation::Extra(1))]
    {
        with_device(|machine, back, front| {
            // The next slot is there, but is another frame's.
            back.fault_rx(Fault::Flags(flags));
            machine.switch.send(frame(GUEST, HOST, 60, 0));
            machine.switch.send(frame(GUEST, HOST, 60, 0));
            machine.run();
            assert_eq!(front.receive(&mut [0; FRAME_MAX]), Err(Error::Broken(violation)));
            assert_broken(front, violation);
        });
    }
}

#[test]
fn a_frame_with_an_error_is_dropped_and_no_more() {
    with_device(|machine, back, front| {
        for status in [0, -1, -2, i16::MIN] {
            back.fault_rx(Fault::Status(status));
            machine.switch.send(frame(GUEST, HOST, 60, 0));
            machine.switch.send(frame(GUEST, HOST, 70, 0));
            machine.run();
            assert_eq!(front.receive(&mut [0; FRAME_MAX]), Ok(Some(70)));
            assert_eq!(front.receive(&mut [0; FRAME_MAX]), Ok(None));
        }
        assert_eq!(front.stats().rx_dropped, 4);
        // A checksum that is blank without leave: nobody would make it.
        back.fault_rx(Fault::Flags(2));
        machine.switch.send(frame(GUEST, HOST, 60, 0));
        machine.run();
        assert_eq!(front.receive(&mut [0; FRAME_MAX]), Ok(None));
        assert_eq!(front.stats().rx_dropped, 5);
        back.fault_tx(Fault::Status(-1));
        back.fault_tx(Fault::Status(-2));
        send_all(machine, front).unwrap();
        assert_eq!(front.stats().tx_errors, 2);
        assert_eq!(front.state(), State::Connected);
    });
}

#[test]
fn a_backend_that_never_answers_costs_its_pages_and_no_more() {
    with_device(|machine, back, front| {
        back.stall(true);
        assert_eq!(send_all(machine, front), Err(Error::Full));
        assert_eq!(front.arm(), Ok(false));
        back.stall(false);
        machine.run();
        assert_eq!(front.arm(), Ok(true));
        send_all(machine, front).unwrap();
    });
}

#[test]
fn a_backend_that_wants_to_end_is_noticed_and_let_go() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    assert_eq!(front.service(&mut xs), Ok(State::Connected));
    back.detach();
    machine.run();
    assert_eq!(front.service(&mut xs), Ok(State::Closing));
    assert_eq!(front.transmit(&frame(HOST, GUEST, 60, 0)), Err(Error::Closed));
    assert_eq!(front.receive(&mut [0; 60]), Err(Error::Closed));
    // It lets go when it has seen that the guest did.
    machine.run();
    assert_eq!(front.service(&mut xs), Ok(State::Closed));
    assert_eq!(front.transmit(&frame(HOST, GUEST, 60, 0)), Err(Error::Closed));
    front.close(&mut xs, machine.soon()).unwrap();
    assert_eq!((machine.grants.stats().in_use, machine.grants.stats().quarantined), (0, 0));
    // And again.
    back.come_back();
    let front = machine.connect(&mut xs).unwrap();
    front.close(&mut xs, machine.soon()).unwrap();
}

#[test]
fn a_backend_that_dies_ends_the_device() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    back.vanish();
    machine.run();
    assert_eq!(front.service(&mut xs), Ok(State::Closed));
    assert_eq!(front.transmit(&frame(HOST, GUEST, 60, 0)), Err(Error::Closed));
    let _ = front.close(&mut xs, machine.soon());
    assert_eq!((machine.grants.stats().in_use, machine.grants.stats().quarantined), (0, 0));
}

#[test]
fn nodes_that_make_no_sense_are_refused() {
    for (node, value, error) in [
        ("feature-rx-copy", Some("0"), Error::NoRxCopy),
        ("feature-rx-copy", None, Error::NoRxCopy),
        ("feature-rx-copy", Some("\u{fffd}"), Error::NoRxCopy),
        ("feature-rx-copy", Some("99999999999999999999"), Error::NoRxCopy),
    ] {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        back.lie(node, value);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        for _ in 0..40 {
            // More often than there are places for watches.
            assert_eq!(machine.connect(&mut xs).err(), Some(error), "{value:?}");
        }
        assert_eq!(machine.grants.stats().in_use, 0);
    }
    for value in [None, Some(""), Some("00:16:3e"), Some("no"), Some("00:16:3e:12:34:5g")] {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        back.set_front("mac", value);
        for _ in 0..40 {
            assert_eq!(machine.connect(&mut xs).err(), Some(Error::NoMac), "{value:?}");
        }
        assert_eq!(machine.grants.stats().in_use, 0);
    }
}

#[test]
fn a_backend_that_does_not_come_up_costs_nothing() {
    for state in ["1", "2", "5", "6", "0", "", "x", "4294967296"] {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        let ports = xen_evtchn::mock::open_ports(&machine.guest);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        back.lie("state", Some(state));
        for _ in 0..40 {
            assert!(matches!(machine.connect(&mut xs).err(), Some(Error::Xenstore(_))), "{state}");
            assert_eq!(machine.grants.stats().in_use, 0);
            assert_eq!(xen_evtchn::mock::open_ports(&machine.guest), ports);
        }
    }
}

#[test]
fn memory_that_runs_out_is_an_error() {
    for left in [0, 1, 2, 3, 5, 100, 257, 258, 300, 513, 514] {
        let machine = Machine::new();
        let _back = machine.vif(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        machine.guest.fail_allocs_after(Some(left));
        let error = machine.connect(&mut xs).err();
        assert!(matches!(error, Some(Error::Grant(_) | Error::Event(_))), "{left}: {error:?}");
        assert_eq!(machine.grants.stats().in_use, 0);
        machine.guest.fail_allocs_after(None);
        machine.connect(&mut xs).unwrap();
    }
}

#[test]
fn a_chain_of_responses_that_is_too_long_leaks_no_page() {
    // So many slots of 1500 bytes each, said to be one frame.
    for chain in [44, 60, 200, 255] {
        for exchanges in [false, true] {
            let machine = Machine::new();
            let back = machine.vif(Options::default());
            let mut xs = Xenstore::new(&machine.events).unwrap();
            let config = Config { receive: Features::all(), ..Config::default() };
            let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
            let page = || machine.grants.share(DomId(0), Access::ReadWrite).unwrap();
            let mut spare: Vec<_> = (0..4).map(|_| FramePage::new(page(), 0, 0)).collect();
            let in_use = machine.grants.stats().in_use;
            for round in 0..4 {
                for _ in 1..chain {
                    back.fault_rx(Fault::Flags(4));
                    machine.switch.send(frame(GUEST, HOST, 1500, 1));
                }
                machine.switch.send(frame(GUEST, HOST, 1500, 1));
                for _ in 0..8 {
                    machine.run();
                }
                let received = if exchanges {
                    front.receive_pages(&mut spare).map(drop)
                } else {
                    front.receive(&mut [0; FRAME_MAX]).map(drop)
                };
                assert_eq!(received, Ok(()));
                assert_eq!(front.stats().rx_dropped, round + 1, "{chain} {exchanges}");
                front.publish().unwrap();
                assert_eq!((machine.grants.stats().in_use, back.room()), (in_use, 256));
                machine.switch.send(frame(GUEST, HOST, 99, 2));
                machine.run();
                assert_eq!(front.receive(&mut [0; FRAME_MAX]), Ok(Some(99)));
            }
            front.close(&mut xs, machine.soon()).unwrap();
            drop(spare);
            assert_eq!((machine.grants.stats().in_use, machine.grants.stats().quarantined), (0, 0));
        }
    }
}

#[test]
fn events_that_are_under_way_when_a_card_goes_reach_nobody() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    for round in 0..20 {
        let mut front = machine.connect(&mut xs).unwrap();
        machine.run();
        while front.arm().unwrap() {}
        machine.switch.send(frame(GUEST, HOST, 60, 0));
        // Xen has raised the event, and nobody has dispatched it yet.
        machine.xen.run_until_idle(100);
        let stray = machine.events.stats().stray;
        match round % 4 {
            0 => drop(front),
            1 => front.close(&mut xs, machine.soon()).unwrap(),
            2 => {
                front.reconnect(&mut xs, machine.soon()).unwrap();
                front.close(&mut xs, machine.soon()).unwrap();
            }
            _ => {
                back.vanish();
                assert!(front.reconnect(&mut xs, machine.soon()).is_err());
                // A card of which half is gone refuses everything, and can be let go.
                assert_eq!(front.service(&mut xs), Ok(State::Closed));
                assert_eq!((front.queues(), front.backend(), front.channel(0).is_none()), (0, None, true));
                assert_eq!(front.arm(), Err(Error::Closed));
                assert_eq!(front.transmit(&frame(HOST, GUEST, 60, 0)), Err(Error::Closed));
                let soon = machine.soon();
                assert!(front.control(soon).is_none());
                assert_eq!(front.want_multicast(Mac([1; 6]), true), Err(Error::Closed));
                assert_eq!(front.close(&mut xs, machine.soon()), Ok(()));
            }
        }
        machine.events.dispatch(xen_hypercall::VcpuId(0));
        assert_eq!(machine.events.stats().stray, stray);
        back.vanish();
        back.come_back();
        machine.run();
        machine.grants.reclaim();
        assert_eq!((machine.grants.stats().in_use, machine.grants.stats().quarantined), (0, 0), "{round}");
        // The next card, maybe by the same port, hears of its frames.
        let mut front = machine.connect(&mut xs).unwrap();
        machine.run();
        while front.arm().unwrap() {}
        let seen = machine.events.seq();
        machine.switch.send(frame(GUEST, HOST, 61, 0));
        machine.run();
        assert!(machine.events.seq() != seen);
        assert_eq!(front.receive(&mut [0; 61]), Ok(Some(61)));
        front.close(&mut xs, machine.soon()).unwrap();
    }
}
