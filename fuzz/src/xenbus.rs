//! The handshake of a device, with a backend that says anything in its nodes and goes from any state to any other.
//!
//! Each step ends by its deadline, whatever the backend does; a backend that does as Linux's does connects; no watch is
//! left over.

use std::time::Duration;

use xen_hypercall::mock::{ActorId, MockDomain};
use xen_xenstore::xenbus::{BackendReady, Connected, Frontend, Published, XenbusState};
use xen_xenstore::{Error, Xenstore};

use crate::input::{Bytes, Input, Number, Ops, clashes, input};
use crate::machine::{GUEST, Machine, attempt};

const BACK: &str = "/local/domain/0/backend/test/1/0";
const FRONT: &str = "/local/domain/1/device/test/0";
/// What a call to the store may take, and a step of the handshake.
const PATIENCE: Duration = Duration::from_millis(20);
const STEP: u64 = 50;

input! {
    /// What is tried.
    pub struct Plan {
        /// Whether the backend also does what Linux's does.
        linux: bool,
        ops: Ops<Op>,
    }

    /// What happens next.
    pub enum Op {
        Open,
        WaitForBackend,
        /// Publishes these, and the next state.
        Publish { nodes: u8, next: u8 },
        WaitConnected,
        SwitchConnected,
        IsClosing,
        Changed,
        Close,
        Abandon,
        /// Drops what there is of the device, as a driver that fails does.
        Forget,
        ReadBackend { node: u8 },
        /// The backend's state is this at once.
        Back { state: State },
        /// When the frontend's state is this next time, the backend's becomes that.
        Reacts { front: u8, state: State },
        /// A node says this, or goes: in the backend's directory, or in ours.
        Say { node: u8, state: State },
        Vanish,
        Stall { on: bool },
        Pace { bytes: u8 },
        Clash { times: u8 },
    }

    /// What a node says.
    pub enum State {
        /// A state.
        Plain { state: u8 },
        None,
        Empty,
        Number { number: Number },
        Bytes { bytes: Bytes },
        /// The path of the backend, and of another.
        Path,
        OtherPath,
        Deep { parts: u16 },
    }
}

impl State {
    fn value(&self) -> Option<Vec<u8>> {
        Some(match self {
            Self::Plain { state } => (state % 9).to_string().into_bytes(),
            Self::None => return None,
            Self::Empty => Vec::new(),
            Self::Number { number } => number.get().to_string().into_bytes(),
            Self::Bytes { bytes } => bytes.0.clone(),
            Self::Path => BACK.into(),
            Self::OtherPath => "/local/domain/1/data".into(),
            Self::Deep { parts } => "/a".repeat(usize::from(*parts) % 2000).into_bytes(),
        })
    }
}

/// As backends of Linux do: from one state, when the frontend is in another, to a third.
const LINUX: &[(&str, &str, &str)] = &[
    ("1", "1", "2"),
    ("6", "1", "2"),
    ("2", "3", "4"),
    ("2", "4", "4"),
    ("4", "5", "5"),
    ("5", "6", "6"),
    ("4", "6", "6"),
    ("2", "6", "6"),
    ("3", "5", "5"),
    ("2", "5", "5"),
];

enum Device {
    None,
    Initialising(Frontend<xen_xenstore::xenbus::Initialising>),
    Ready(Frontend<BackendReady>),
    Published(Frontend<Published>),
    Connected(Frontend<Connected>),
}

struct Run<'m> {
    machine: &'m Machine,
    device: Device,
    scripted: Vec<ActorId>,
}

fn say(machine: &Machine, path: &str, state: &State) {
    match state.value() {
        Some(value) => machine.store.write_bytes(path, &value),
        None => machine.store.remove(path),
    }
}

/// What the toolstack writes for a new device.
fn plug_in(machine: &Machine) {
    let store = &machine.store;
    store.write(BACK, "");
    store.set_permissions(BACK, "n0\0r1");
    store.write(&format!("{BACK}/state"), "1");
    store.write(FRONT, "");
    store.set_permissions(FRONT, "n1\0r0");
    for (node, value) in [("backend", BACK), ("backend-id", "0"), ("state", "1")] {
        store.write(&format!("{FRONT}/{node}"), value);
    }
}

impl<'m> Run<'m> {
    fn step(&mut self, xs: &mut Xenstore<'m, MockDomain>, op: &Op) {
        let until = self.machine.after(STEP);
        match (std::mem::replace(&mut self.device, Device::None), op) {
            (Device::None, Op::Open) => {
                if let Ok(device) = Frontend::open(xs, "test", 0, until) {
                    self.device = Device::Initialising(device);
                }
            }
            (Device::Initialising(device), Op::WaitForBackend) => {
                if let Ok(device) = device.wait_for_backend(xs, until) {
                    self.device = Device::Ready(device);
                }
            }
            (Device::Ready(device), Op::Publish { nodes, next }) => {
                let published = device.publish(xs, XenbusState((*next % 8).into()), |transaction, path| {
                    (0..nodes % 8).try_for_each(|node| transaction.write_display(&path.join(node)?, node))
                });
                if let Ok(device) = published {
                    self.device = Device::Published(device);
                }
            }
            (Device::Published(device), Op::WaitConnected) => {
                if let Ok(device) = device.wait_connected(xs, until) {
                    self.device = Device::Connected(device);
                }
            }
            (Device::Connected(device), Op::SwitchConnected) => {
                let _ = device.switch(xs, XenbusState::CONNECTED);
                self.device = Device::Connected(device);
            }
            (Device::Connected(device), Op::IsClosing) => {
                if device.is_closing(xs) == Ok(true) {
                    // It stays so, whoever asks next.
                    let again = device.change(xs);
                    assert!(!matches!(again, Ok(change) if !change.is_over()));
                }
                self.device = Device::Connected(device);
            }
            (Device::Connected(device), Op::Changed) => {
                let _ = device.change(xs);
                self.device = Device::Connected(device);
            }
            (Device::Connected(device), Op::Close) => drop(device.close(xs, until)),
            (Device::Initialising(device), Op::Abandon) => drop(device.abandon(xs)),
            (Device::Ready(device), Op::Abandon) => drop(device.abandon(xs)),
            (Device::Published(device), Op::Abandon) => drop(device.abandon(xs)),
            (Device::Ready(device), Op::ReadBackend { node }) => {
                let _ = device.read_backend::<_, u32>(xs, &node.to_string());
                let _ = device.backend_state(xs);
                self.device = Device::Ready(device);
            }
            (device, other) => {
                self.device = device;
                self.other(other);
            }
        }
    }

    /// What the backend does, and the daemon.
    fn other(&mut self, op: &Op) {
        let store = &self.machine.store;
        match *op {
            Op::Back { ref state } => say(self.machine, &format!("{BACK}/state"), state),
            Op::Reacts { front, ref state } => {
                let (store, front, value) = (store.clone(), (front % 8).to_string(), state.value());
                let mut done = false;
                let actor = self.machine.xen.add_actor("backend of the input", move |_| {
                    let now = store.read(&format!("{FRONT}/state"));
                    if done || now.as_deref() != Some(&*front) {
                        return false;
                    }
                    done = true;
                    match &value {
                        Some(value) => store.write_bytes(&format!("{BACK}/state"), value),
                        None => store.remove(&format!("{BACK}/state")),
                    }
                    true
                });
                self.scripted.push(actor);
            }
            Op::Say { node, ref state } => {
                let nodes = ["backend", "backend-id", "state"];
                say(self.machine, &format!("{FRONT}/{}", nodes[usize::from(node) % 3]), state);
            }
            Op::Vanish => store.remove(BACK),
            Op::Stall { on } => store.stall(on),
            Op::Pace { bytes } => store.set_pace((bytes < 128).then(|| 1 + usize::from(bytes))),
            Op::Clash { times } => store.clash(clashes(times)),
            _ => {}
        }
    }
}

fn linux(machine: &Machine) {
    let store = machine.store.clone();
    machine.xen.add_actor("backend", move |_| {
        let path = format!("{BACK}/state");
        let (Some(back), Some(front)) = (store.read(&path), store.read(&format!("{FRONT}/state"))) else {
            return false;
        };
        let next = LINUX.iter().find(|(from, frontend, _)| *from == back && *frontend == front);
        if let Some((_, _, to)) = next {
            store.write(&path, to);
        }
        next.is_some()
    });
}

fn connect(machine: &Machine, xs: &mut Xenstore<'_, MockDomain>) -> Result<Frontend<Connected>, Error> {
    let device = Frontend::open(xs, "test", 0, machine.after(5000))?;
    let device = device.wait_for_backend(xs, machine.after(5000))?;
    let device = device.publish(xs, XenbusState::INITIALISED, |_, _| Ok(()))?;
    let device = device.wait_connected(xs, machine.after(5000))?;
    device.switch(xs, XenbusState::CONNECTED)?;
    Ok(device)
}

/// Tries an input.
pub fn run(data: &[u8]) {
    attempt(data, |plan: &Plan| attempt_plan(plan));
}

fn attempt_plan(plan: &Plan) {
    let machine = Machine::new();
    plug_in(&machine);
    if plan.linux {
        linux(&machine);
    }
    let mut xs = Xenstore::new(&machine.events).expect("a connection");
    xs.set_patience(PATIENCE);
    let mut run = Run { machine: &machine, device: Device::None, scripted: Vec::new() };
    for op in &plan.ops.0 {
        machine.xen.trace(|| format!("-- {op:?}"));
        let before = xs.now();
        run.step(&mut xs, op);
        let took = xs.now() - before;
        // The step's own time, and what is asked when it is over; a transaction that clashes asks 64 times.
        let most = Duration::from_millis(STEP)
            + PATIENCE * if matches!(op, Op::Publish { .. }) { 64 * 12 } else { 16 };
        assert!(took <= most, "{op:?} took {took:?}");
    }
    // What is dropped without a word leaves its watch, as documented; everything else takes its own back.
    let held = !matches!(run.device, Device::None);
    run.scripted.iter().for_each(|actor| machine.xen.remove_actor(*actor));
    drop(run);
    machine.store.stall(false);
    machine.store.set_pace(None);
    machine.store.clash(0);
    machine.store.remove(BACK);
    machine.store.remove(FRONT);
    plug_in(&machine);
    if !plan.linux {
        linux(&machine);
    }
    xs.set_patience(Duration::from_secs(5));
    // The other device's watch may have left no room, and the connection may have been given up.
    let before = machine.store.watches(GUEST);
    if !held {
        let device = connect(&machine, &mut xs).expect("a backend like Linux's");
        device.close(&mut xs, machine.after(5000)).expect("a backend like Linux's");
        // A daemon that hung does late what the client has given up since.
        let hung = plan.ops.0.iter().any(|op| matches!(op, Op::Stall { .. } | Op::Pace { .. }));
        assert!(hung || machine.store.watches(GUEST) == before, "a watch is left over");
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let up = || {
        vec![
            Op::Open,
            Op::WaitForBackend,
            Op::ReadBackend { node: 1 },
            Op::Publish { nodes: 3, next: 3 },
            Op::WaitConnected,
            Op::SwitchConnected,
            Op::IsClosing,
        ]
    };
    let linux = |ops: Vec<Op>| Plan { linux: true, ops: Ops(ops) }.bytes();
    let scripted = |ops: Vec<Op>| Plan { linux: false, ops: Ops(ops) }.bytes();
    let plain = |state| State::Plain { state };
    vec![
        ("up-and-down", linux([up(), vec![Op::Close], up(), vec![Op::Close]].concat())),
        (
            "closing",
            linux([up(), vec![Op::Back { state: plain(5) }, Op::IsClosing, Op::Changed, Op::Close]].concat()),
        ),
        ("vanishes", linux([up(), vec![Op::Vanish, Op::IsClosing, Op::Close]].concat())),
        ("scripted", {
            let script = vec![
                Op::Back { state: plain(2) },
                Op::Reacts { front: 3, state: plain(4) },
                Op::Reacts { front: 5, state: plain(6) },
            ];
            scripted([script, up(), vec![Op::Close]].concat())
        }),
        (
            "no-number",
            scripted([vec![Op::Back { state: State::Bytes { bytes: Bytes(vec![0xff, 0]) } }], up()].concat()),
        ),
        ("no-backend", scripted([vec![Op::Say { node: 0, state: State::None }], up()].concat())),
        ("deep", scripted([vec![Op::Say { node: 0, state: State::Deep { parts: 1600 } }], up()].concat())),
        ("other-path", linux([vec![Op::Say { node: 0, state: State::OtherPath }], up()].concat())),
        ("clash", linux([vec![Op::Open, Op::Clash { times: 255 }, Op::WaitForBackend], up()].concat())),
        ("abandoned", linux(vec![Op::Open, Op::WaitForBackend, Op::Abandon, Op::Open, Op::Forget])),
    ]
}
