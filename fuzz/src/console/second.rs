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
use crate::machine::{BACK, GUEST, Machine};

const FRONT_PATH: &str = "/local/domain/1/device/console/1";
const BACK_PATH: &str = "/local/domain/0/backend/console/1/1";
/// What a handshake may take, up or down, in milliseconds.
const HANDSHAKE: u64 = 50;

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
            let path = format!("{BACK_PATH}/{node}");
            match value.text() {
                Some(text) => machine.store.write(&path, &text),
                None => machine.store.remove(&path),
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
    assert!(took <= 2 * Duration::from_millis(HANDSHAKE), "{op:?} took {took:?}");
    true
}

pub(super) fn attempt_plan(plan: &Plan) {
    let machine = Machine::new();
    let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let peer = |act| {
        let gref = machine.store.read(&format!("{FRONT_PATH}/ring-ref")).and_then(|text| text.parse().ok());
        let back = machine.xen.domain(BACK);
        let page = gref.map(|gref| xen_gnttab::mock::map(&back, GUEST, GrantRef(gref), true));
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
    machine.store.remove(FRONT_PATH);
    machine.run();
    machine.grants.reclaim();
    let stats = machine.grants.stats();
    assert_eq!((stats.in_use, stats.quarantined), (0, 0));
    assert_eq!(xen_gnttab::mock::mappings_of(&machine.xen, GUEST), 0);
    assert_eq!(xen_evtchn::mock::open_ports(&machine.guest), ports);
    assert_eq!(machine.store.watches(GUEST), 0);
}
