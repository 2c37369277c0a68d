//! Devices that come and go.
#![cfg(feature = "mock")]

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use common::executor::Executor;
use common::{ID, Machine};
use xen_hypercall::DomId;
use xen_hypercall::mock::{Dice, MockDomain};
use xen_xenstore::mock::MockDevice;
use xen_xenstore::shared::SharedStore;
use xen_xenstore::way::{blocking, tasks};
use xen_xenstore::xenbus::{Bus, BusEvent, XenbusState};
use xen_xenstore::{Blocking, Xenstore};

fn disk(machine: &Machine, index: u32) -> MockDevice {
    MockDevice::new(&machine.store, "vbd", index, ID, DomId(0))
}

fn line(event: BusEvent) -> String {
    match event {
        BusEvent::Added(device) => format!("added {} {:?}", device.index(), device.device_type()),
        BusEvent::Removed(index) => format!("removed {index}"),
        BusEvent::Ready(device) => format!("ready {} by {}", device.index(), device.backend_id()),
        BusEvent::Overflow(count) => format!("{count} more"),
        other => panic!("{other:?}"),
    }
}

/// All that is told now.
fn told<const N: usize>(bus: &mut Bus<N>, xs: &mut Xenstore<'_, MockDomain>) -> Vec<String> {
    let soon = xs.now() + Duration::from_millis(10);
    let mut ask = Blocking::until(xs, soon);
    let mut lines = Vec::new();
    while let Some(event) = blocking::bus::next(bus, &mut ask).unwrap() {
        lines.push(line(event));
    }
    lines
}

#[test]
fn devices_come_and_go() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let first = disk(&machine, 51712);
    first.plug();
    machine.store.write(&first.front_path("device-type"), "disk");
    let mut bus: Bus<3> = blocking::bus::open(&mut Blocking::new(&mut xs), "vbd").unwrap();
    assert_eq!(told(&mut bus, &mut xs), ["added 51712 Some(\"disk\")"]);
    assert_eq!(bus.devices().map(|device| device.index()).collect::<Vec<_>>(), [51712]);
    first.set_state(XenbusState::INIT_WAIT);
    assert_eq!(told(&mut bus, &mut xs), ["ready 51712 by d0"]);
    first.set_state(XenbusState::CONNECTED);
    assert_eq!(told(&mut bus, &mut xs), [""; 0]);
    // It has let go, and is to stay.
    first.set_state(XenbusState::CLOSED);
    assert_eq!(told(&mut bus, &mut xs), ["ready 51712 by d0"]);
    first.detach();
    first.set_state(XenbusState::CLOSED);
    assert_eq!(told(&mut bus, &mut xs), [""; 0]);
    first.unplug();
    assert_eq!(told(&mut bus, &mut xs), ["removed 51712"]);
    // A toolstack that is still writing.
    machine.store.write("/local/domain/1/device/vbd/7", "");
    assert_eq!(told(&mut bus, &mut xs), [""; 0]);
    disk(&machine, 7).plug();
    machine.store.write("/local/domain/1/device/vbd/no-number", "");
    assert_eq!(told(&mut bus, &mut xs), ["added 7 None"]);
    // Another one in its place.
    disk(&machine, 7).unplug();
    MockDevice::new(&machine.store, "vbd", 7, ID, DomId(3)).plug();
    assert_eq!(told(&mut bus, &mut xs), ["removed 7", "added 7 None"]);
    // More than there is room for.
    for index in 20..24 {
        disk(&machine, index).plug();
    }
    assert_eq!(told(&mut bus, &mut xs), ["added 20 None", "added 21 None", "2 more"]);
    disk(&machine, 20).unplug();
    let lines = told(&mut bus, &mut xs);
    assert!(
        lines.contains(&"removed 20".to_owned()) && lines.contains(&"added 22 None".to_owned()),
        "{lines:?}"
    );
    assert!(lines.contains(&"1 more".to_owned()), "{lines:?}");
    blocking::bus::close(bus, &mut Blocking::new(&mut xs)).unwrap();
    machine.settle();
    assert_eq!(machine.store.watches(ID), 0);
}

#[test]
fn a_task_is_told_of_each_device_in_the_end() {
    for seed in 0..40 {
        let machine = Machine::new();
        let store = SharedStore::new(machine.client());
        let there = Rc::new(RefCell::new(std::collections::BTreeMap::new()));
        let mut executor = Executor::new(&machine, seed);
        executor.spawn(async {
            let _ = store.runner().run().await;
        });
        let seen = Rc::clone(&there);
        let client = store.client();
        let task = executor.spawn(async move {
            let mut ask = client.conversation();
            let mut bus: Bus<8> = tasks::bus::open(&mut ask, "vbd").await.unwrap();
            loop {
                match tasks::bus::next(&mut bus, &mut ask).await.unwrap().unwrap() {
                    BusEvent::Added(device) => {
                        assert!(seen.borrow_mut().insert(device.index(), false).is_none());
                    }
                    BusEvent::Removed(index) => assert!(seen.borrow_mut().remove(&index).is_some()),
                    BusEvent::Ready(device) => *seen.borrow_mut().get_mut(&device.index()).unwrap() = true,
                    other => panic!("{other:?}"),
                }
            }
        });
        let dice = Dice::new(seed);
        for _ in 0..40 {
            let device = disk(&machine, dice.below(6) as u32);
            match dice.below(3) {
                0 if !device.is_there() => device.plug(),
                1 if device.is_there() => device.unplug(),
                2 if device.is_there() => device.set_state(XenbusState::INIT_WAIT),
                _ => {}
            }
            for _ in 0..dice.below(60) {
                executor.turn();
            }
        }
        executor.run();
        let indices: Vec<u32> = (0..6).filter(|index| disk(&machine, *index).is_there()).collect();
        assert_eq!(there.borrow().keys().copied().collect::<Vec<_>>(), indices, "seed {seed}");
        for (index, ready) in &*there.borrow() {
            let waits = disk(&machine, *index).back("state").as_deref() == Some("2");
            assert!(*ready || !waits, "seed {seed}: {index}");
        }
        executor.drop_task(task);
        executor.run();
        assert_eq!(machine.store.watches(ID), 0);
    }
}
