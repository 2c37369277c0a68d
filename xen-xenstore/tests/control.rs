//! What the toolstack asks of the whole domain.
#![cfg(feature = "mock")]

mod common;

use common::{HOME, Machine};
use xen_xenstore::Error;
use xen_xenstore::control::{Request, ShutdownWatch};
use xen_xenstore::wire::Operation;

const NODE: &str = "/local/domain/1/control/shutdown";

#[test]
fn each_request_is_told_once_and_acknowledged() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let watch = ShutdownWatch::new(&mut xs).unwrap();
    machine.settle();
    assert_eq!(watch.poll(&mut xs), Ok(None));
    for feature in ["feature-poweroff", "feature-reboot"] {
        assert_eq!(machine.store.read(&format!("{HOME}/control/{feature}")).as_deref(), Some("1"));
    }
    for (word, request) in [
        ("poweroff", Request::PowerOff),
        ("halt", Request::Halt),
        ("reboot", Request::Reboot),
        ("suspend", Request::Suspend),
        ("crash", Request::Crash),
        ("poweroff", Request::PowerOff),
    ] {
        machine.store.write(NODE, word);
        machine.settle();
        assert_eq!(watch.poll(&mut xs), Ok(Some(request)));
        assert_eq!(machine.store.read(NODE).as_deref(), Some(""));
        machine.settle();
        assert_eq!(watch.poll(&mut xs), Ok(None));
    }
}

#[test]
fn what_is_no_request_is_left_alone() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let watch = ShutdownWatch::new(&mut xs).unwrap();
    let long = [b'p'; 2000];
    for word in [&b"powerof"[..], b"poweroff ", b"POWEROFF", b"\xff", b"", &long] {
        machine.store.write_bytes(NODE, word);
        machine.settle();
        assert_eq!(watch.poll(&mut xs), Ok(None));
        assert_eq!(machine.store.read_bytes(NODE).as_deref(), Some(word));
    }
    machine.store.remove(NODE);
    machine.settle();
    assert_eq!(watch.poll(&mut xs), Ok(None));
}

#[test]
fn a_request_is_not_lost_when_it_cannot_be_taken() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let watch = ShutdownWatch::new(&mut xs).unwrap();
    machine.store.write(NODE, "reboot");
    machine.settle();
    machine.store.stall(true);
    assert_eq!(watch.poll(&mut xs), Err(Error::TimedOut(Operation::READ)));
    machine.store.stall(false);
    machine.store.clash(usize::MAX);
    assert_eq!(watch.poll(&mut xs), Err(Error::Contended));
    machine.store.clash(10);
    assert_eq!(watch.poll(&mut xs), Ok(Some(Request::Reboot)));
    machine.settle();
    assert_eq!(watch.poll(&mut xs), Ok(None));
}

#[test]
fn a_toolstack_that_keeps_the_directory_to_itself_is_borne() {
    let machine = Machine::new();
    for node in ["feature-poweroff", "feature-reboot"] {
        machine.store.set_permissions(&format!("{HOME}/control/{node}"), "n0\0r1");
    }
    let mut xs = machine.client();
    let watch = ShutdownWatch::new(&mut xs).unwrap();
    machine.store.write(NODE, "halt");
    machine.settle();
    assert_eq!(watch.poll(&mut xs), Ok(Some(Request::Halt)));
}
