//! A console with a number: a device, with its handshake and a page that is granted.

use std::time::Duration;

use xen_console::SecondaryConsole;
use xen_console::mock::model::Model;
use xen_console::mock::{Faults, MockConsoled};
use xen_gnttab::GrantRef;
use xen_hypercall::mock::{Dice, MockDomain};
use xen_ring::ConsoleLayout;
use xen_ring::mock::HostilePeer;
use xen_xenstore::Xenstore;

use super::{Op, Plan, Run};
use crate::machine::{BACK, Machine, PATIENCE};

/// What a handshake may take, up or down, in milliseconds.
const HANDSHAKE: u64 = 50;

/// Where the device is in xenstore, in the guest's life of now.
fn front_path(machine: &Machine) -> String {
    format!("/local/domain/{}/device/console/1", machine.guest.id().0)
}

type Device<'m> = SecondaryConsole<'m, MockDomain>;

fn connect<'m>(machine: &'m Machine, xs: &mut Xenstore<'m, MockDomain>) -> Option<Device<'m>> {
    let until = machine.after(HANDSHAKE);
    SecondaryConsole::connect(xs, &machine.events, &machine.grants, 1, until).ok()
}

/// What happens to the device, and not in the console. Answers whether it was that.
fn step<'m>(
    machine: &'m Machine,
    run: &mut Run<'m>,
    xs: &mut Xenstore<'m, MockDomain>,
    device: &mut Option<Device<'m>>,
    op: &Op,
) -> bool {
    let before = machine.xen.now();
    match *op {
        Op::Service => {
            if let Some(device) = device {
                let _ = device.service(xs);
            }
        }
        Op::Detach => run.daemon.detach(),
        Op::Restart => run.daemon.restart(),
        Op::Reconnect => {
            if let Some(device) = device {
                let before = device.stats();
                if device.reconnect(xs, machine.after(HANDSHAKE)).is_ok()
                    && let Ok(console) = device.console()
                {
                    run.model.reconnected(console, before);
                }
            }
        }
        Op::Say { node, ref value } => {
            let node = ["state", "frontend", "frontend-id"][usize::from(node) % 3];
            let path = format!("/local/domain/0/backend/console/{}/1/{node}", machine.guest.id().0);
            match value.text() {
                Some(text) => machine.store.write(&path, &text),
                None => machine.store.remove(&path),
            }
        }
        Op::Suspend { migrate } => {
            if run.suspends() {
                let before = device.as_ref().map(Device::stats);
                let absent = machine.suspend(xs, device, migrate);
                assert!(absent == 0 || (migrate && absent == 1));
                if let (true, Some(device), Some(before)) = (migrate, device, before)
                    && let Ok(console) = device.console()
                {
                    run.model.reconnected(console, before);
                }
            }
        }
        Op::Anew => {
            if let Some(device) = device.take() {
                let _ = device.close(xs, machine.after(HANDSHAKE));
            }
            *device = connect(machine, xs);
            // What was on its way when it was closed is lost.
            run.model.reopened();
        }
        _ => return false,
    }
    let took = machine.xen.now() - before;
    let most = if let Op::Suspend { .. } = op { PATIENCE } else { 2 * Duration::from_millis(HANDSHAKE) };
    assert!(took <= most, "{op:?} took {took:?}");
    true
}

pub(super) fn attempt_plan(plan: &Plan) {
    let machine = Machine::new();
    let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let peer = |act| {
        let ring = machine.store.read(&format!("{}/ring-ref", front_path(&machine)));
        let gref = ring.and_then(|text| text.parse().ok());
        let back = machine.xen.domain(BACK);
        let page = gref.map(|gref| xen_gnttab::mock::map(&back, machine.guest.id(), GrantRef(gref), true));
        if let Some(Ok(page)) = page {
            HostilePeer::<ConsoleLayout, _>::new(page).expect("a page is enough").apply(act);
        }
    };
    let mut xs = Xenstore::new(&machine.events).expect("a connection");
    let ports = xen_evtchn::mock::open_ports(&machine.guest);
    let mut device = connect(&machine, &mut xs);
    assert!(device.is_some(), "a daemon without faults so far");
    let mut run = Run::new(plan, &daemon, Model::new(&machine.guest, &machine.events, &daemon), &peer);
    for op in &plan.ops.0 {
        machine.xen.trace(|| format!("-- {op:?}"));
        let done = step(&machine, &mut run, &mut xs, &mut device, op);
        match &mut device {
            Some(device) if !done => {
                if let Ok(console) = device.console() {
                    run.step(console, op);
                }
            }
            _ => {}
        }
    }
    daemon.set_faults(Dice::new(0), Faults::new());
    daemon.stall(false);
    if let Some(mut device) = device {
        // One that was taken away may not be served any more.
        if !plan.ops.0.iter().any(|op| matches!(op, Op::Detach | Op::Restart | Op::Say { .. }))
            && let Ok(console) = device.console()
        {
            run.settle(console);
        }
        let _ = device.close(&mut xs, machine.after(HANDSHAKE));
    }
    // Whatever the backend said: when it has let go, everything is back.
    machine.store.remove(&front_path(&machine));
    machine.run();
    machine.grants.reclaim();
    let stats = machine.grants.stats();
    assert_eq!((stats.in_use, stats.quarantined), (0, 0));
    assert_eq!(xen_gnttab::mock::mappings_of(&machine.xen, machine.guest.id()), 0);
    assert_eq!(xen_evtchn::mock::open_ports(&machine.guest), ports);
    assert_eq!(machine.store.watches(machine.guest.id()), 0);
}
