//! The handshake with a backend that does anything at all, by chance.
#![cfg(feature = "mock")]

mod common;

use std::time::Duration;

use common::{ID, Machine};
use proptest::prelude::*;
use xen_hypercall::mock::{Chance, Dice, MockDomain};
use xen_xenstore::mock::Faults;
use xen_xenstore::xenbus::{Frontend, XenbusState};
use xen_xenstore::{Error, Xenstore};

const BACK: &str = "/local/domain/0/backend/test/1/0";
const FRONT: &str = "/local/domain/1/device/test/0";
/// What each step may take.
const LIMIT: Duration = Duration::from_secs(1);

/// A device with a backend that mostly moves as it should, and otherwise does anything.
fn machine(dice: Dice, strange: Chance) -> Machine {
    let machine = Machine::new();
    machine.store.write(BACK, "");
    machine.store.set_permissions(BACK, "n0\0r1");
    machine.store.write(FRONT, "");
    machine.store.set_permissions(FRONT, "n1\0r0");
    for (node, value) in [("backend", BACK), ("backend-id", "0"), ("state", "1")] {
        machine.store.write(&format!("{FRONT}/{node}"), value);
    }
    machine.store.write(&format!("{BACK}/state"), "1");
    let store = machine.store.clone();
    // It ends at some time: a backend that changes its state for ever would keep virtual time from passing.
    let mut moves = 200;
    machine.xen.add_actor("backend", move |_| {
        let path = format!("{BACK}/state");
        if moves == 0 {
            return false;
        }
        moves -= 1;
        if dice.hit(strange) {
            match dice.below(8) {
                0 => store.remove(&path),
                1 => store.remove(BACK),
                2 => store.write_bytes(&path, &[0xff; 3]),
                3 => store.write(&path, "9".repeat(dice.below(3000) as usize).as_str()),
                4 => store.write(&path, ["", "x", "-1", "4 4", "0x4"][dice.below(5) as usize]),
                5 => return false,
                _ => store.write(&path, &dice.below(10).to_string()),
            }
            return true;
        }
        let (back, front) = (store.read(&path), store.read(&format!("{FRONT}/state")));
        let next = match (back.as_deref(), front.as_deref()) {
            (Some("1" | "6"), Some("1")) => "2",
            (Some("2"), Some("3")) => "4",
            (Some("4"), Some("5")) => "5",
            (Some("2" | "3" | "4" | "5"), Some("6")) => "6",
            _ => return false,
        };
        store.write(&path, next);
        true
    });
    machine
}

/// One whole life of a device: what it ended with, and after how long. Every step ends in its time.
fn life(machine: &Machine, xs: &mut Xenstore<'_, MockDomain>) -> Result<(), Error> {
    let until = |limit: Duration| machine.xen.now() + limit;
    let start = machine.xen.now();
    let device = Frontend::open(xs, "test", 0, until(LIMIT));
    let device = device.and_then(|device| device.wait_for_backend(xs, until(LIMIT)));
    let device = device.and_then(|device| {
        device.publish(xs, XenbusState::INITIALISED, |transaction, path| {
            transaction.write(&path.join("ring-ref")?, b"8")
        })
    });
    let device = device.and_then(|device| device.wait_connected(xs, until(LIMIT)));
    // Each deadline may be overrun by the daemon's own patience, a few times.
    assert!(machine.xen.now() - start <= 20 * LIMIT, "{}", machine.xen.trace_text());
    let device = device?;
    let watch = *device.watch();
    if let Err(error) = device.switch(xs, XenbusState::CONNECTED) {
        let _ = xs.unwatch(watch);
        return Err(error);
    }
    for _ in 0..5 {
        if device.is_closing(xs) == Ok(true) {
            break;
        }
        machine.xen.step();
    }
    let start = machine.xen.now();
    let closed = device.close(xs, until(LIMIT));
    assert!(machine.xen.now() - start <= 20 * LIMIT, "{}", machine.xen.trace_text());
    closed
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_device_ends_in_time_and_leaves_nothing(
        seed in any::<u64>(),
        strange in (0_u8..40).prop_map(Chance::percent),
        faults in (0_u8..20, 0_u8..10, 0_u8..10, 0_u8..30, any::<bool>()),
    ) {
        let dice = Dice::new(seed);
        let machine = machine(dice.clone(), strange);
        let mut xs = machine.client();
        xs.set_patience(Duration::from_millis(100));
        let mut bad = Faults::new();
        if faults.4 {
            bad.again = Chance::percent(faults.0);
            bad.late = Chance::percent(faults.1);
            bad.not_number = Chance::percent(faults.2);
            bad.spurious_event = Chance::percent(faults.3);
            bad.doubled_event = Chance::percent(faults.3);
        }
        machine.store.set_faults(dice, bad);
        for _ in 0..3 {
            match life(&machine, &mut xs) {
                Ok(()) => prop_assert_eq!(machine.store.read(&format!("{FRONT}/state")), Some("6".into())),
                Err(
                    Error::BackendTimedOut(_)
                    | Error::BackendGone(_)
                    | Error::BadValue
                    | Error::BadPath
                    | Error::NotText
                    | Error::Refused(..)
                    | Error::TimedOut(_)
                    | Error::Contended,
                ) => {}
                Err(error) => prop_assert!(false, "{error}\n{}", machine.xen.trace_text()),
            }
        }
        machine.store.set_faults(Dice::new(0), Faults::new());
        // An answer that came too late may have left a watch with the daemon, but no place is lost here.
        let places = (0..128).map(|number| xs.watch(&format!("data/{number}"))).collect::<Result<Vec<_>, _>>();
        prop_assert!(places.is_ok(), "{places:?}");
        if !faults.4 || faults.1 == 0 {
            prop_assert_eq!(machine.store.watches(ID), 128);
        }
        // And a sound backend is met by a sound frontend.
        for watch in places.unwrap() {
            xs.unwatch(watch).unwrap();
        }
        machine.settle();
        let sound = self::machine(Dice::new(0), Chance::NEVER);
        let mut xs = sound.client();
        prop_assert_eq!(life(&sound, &mut xs), Ok(()));
    }
}
