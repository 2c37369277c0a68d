//! What the toolstack asks of the whole domain.
#![cfg(feature = "mock")]

mod common;

use common::{HOME, Machine};
use xen_xenstore::Error;
use xen_xenstore::control::{Request, ShutdownWatch};
use xen_xenstore::wire::Operation;

const NODE: &str = "/local/domain/1/control/shutdown";

const OBEYS: [Request; 2] = [Request::PowerOff, Request::Reboot];

fn feature(machine: &Machine, name: &str) -> Option<String> {
    machine.store.read(&format!("{HOME}/control/feature-{name}"))
}

#[test]
fn each_request_is_told_once_and_acknowledged_when_it_is_accepted() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let watch = ShutdownWatch::new(&mut xs, &OBEYS).unwrap();
    machine.settle();
    assert_eq!(watch.poll(&mut xs), Ok(None));
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
        assert_eq!(watch.poll(&mut xs), Ok(None));
        assert_eq!(machine.store.read(NODE).as_deref(), Some(word), "nobody has accepted it");
        assert_eq!(watch.accept(&mut xs, request), Ok(true));
        assert_eq!(machine.store.read(NODE).as_deref(), Some(""));
        machine.settle();
        assert_eq!(watch.poll(&mut xs), Ok(None));
    }
}

#[test]
fn only_what_the_guest_obeys_is_announced() {
    let all = [Request::PowerOff, Request::Reboot, Request::Suspend];
    for obeys in [&all[..0], &all[..1], &all[..2], &all, &all[2..]] {
        let machine = Machine::new();
        let mut xs = machine.client();
        ShutdownWatch::new(&mut xs, obeys).unwrap();
        for (name, request) in ["poweroff", "reboot", "suspend"].into_iter().zip(all) {
            let expected = if obeys.contains(&request) { "1" } else { "0" };
            assert_eq!(feature(&machine, name).as_deref(), Some(expected), "{name} of {obeys:?}");
        }
    }
}

#[test]
fn a_guest_that_cannot_suspend_leaves_the_request_to_the_toolstack() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let watch = ShutdownWatch::new(&mut xs, &OBEYS).unwrap();
    machine.store.write(NODE, "suspend");
    machine.settle();
    assert_eq!(watch.poll(&mut xs), Ok(Some(Request::Suspend)));
    assert_eq!(machine.store.read(NODE).as_deref(), Some("suspend"));
    // It takes it back, and asks for something else.
    machine.store.write(NODE, "");
    machine.store.write(NODE, "reboot");
    machine.settle();
    assert_eq!(watch.accept(&mut xs, Request::Suspend), Ok(false));
    assert_eq!(machine.store.read(NODE).as_deref(), Some("reboot"));
    assert_eq!(watch.poll(&mut xs), Ok(Some(Request::Reboot)));
    assert_eq!(watch.accept(&mut xs, Request::Reboot), Ok(true));
    machine.store.remove(NODE);
    assert_eq!(watch.accept(&mut xs, Request::Reboot), Ok(false));
    assert_eq!(machine.store.read(NODE), None);
}

#[test]
fn what_is_no_request_is_left_alone() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let watch = ShutdownWatch::new(&mut xs, &OBEYS).unwrap();
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
    let watch = ShutdownWatch::new(&mut xs, &OBEYS).unwrap();
    machine.store.write(NODE, "reboot");
    machine.settle();
    machine.store.stall(true);
    assert_eq!(watch.poll(&mut xs), Err(Error::TimedOut(Operation::READ)));
    machine.store.stall(false);
    assert_eq!(watch.poll(&mut xs), Ok(Some(Request::Reboot)));
    machine.store.clash(usize::MAX);
    assert_eq!(watch.accept(&mut xs, Request::Reboot), Err(Error::Contended));
    // It stands, and is found again.
    machine.store.clash(10);
    assert_eq!(watch.poll(&mut xs), Ok(Some(Request::Reboot)));
    assert_eq!(watch.accept(&mut xs, Request::Reboot), Ok(true));
    machine.settle();
    assert_eq!(watch.poll(&mut xs), Ok(None));
}

#[test]
fn a_toolstack_that_keeps_the_directory_to_itself_is_borne() {
    let machine = Machine::new();
    for node in ["feature-poweroff", "feature-reboot", "feature-suspend"] {
        machine.store.set_permissions(&format!("{HOME}/control/{node}"), "n0\0r1");
    }
    let mut xs = machine.client();
    let watch = ShutdownWatch::new(&mut xs, &OBEYS).unwrap();
    machine.store.write(NODE, "halt");
    machine.settle();
    assert_eq!(watch.poll(&mut xs), Ok(Some(Request::Halt)));
}
