//! A console, the first or one through xenstore, with a daemon that fails, hangs, or writes anywhere in the page.
//!
//! What was written comes out, and what was typed comes in, in order and once, as long as the daemon does not lie; every
//! call ends in time; only a daemon that lies breaks the console.

mod second;

use std::time::Duration;

use xen_console::Console;
use xen_console::mock::model::{Act, Model};
use xen_console::mock::{Faults, MockConsoled};
use xen_hypercall::hvm::HvmParam;
use xen_hypercall::mock::{Dice, MockDomain};
use xen_ring::ConsoleLayout;
use xen_ring::mock::{HostilePeer, PeerOp};
use xen_xenstore::Xenstore;

use crate::byte_ring::Hostile;
use crate::input::{Input, Number, Ops, Value, chance, input};
use crate::machine::{Machine, SpecialPage, attempt};

input! {
    /// What is tried.
    pub struct Plan {
        /// The first console, or one with a number.
        second: bool,
        seed: u32,
        /// How often each goes wrong, in the order of [`Faults`].
        faults: [u8; 5],
        ops: Ops<Op>,
    }

    /// What happens next.
    pub enum Op {
        Write { len: u16 },
        WriteAll { len: u16, patience: u8 },
        Text { len: u8, ends: bool, patience: u8 },
        Print { len: u8 },
        Read { len: u16 },
        Drain { patience: u8 },
        WaitReadable { patience: u8 },
        PollReadable,
        Readable,
        Writable,
        Emergency { len: u16 },
        WaitWritable { patience: u8 },
        WaitConnected { patience: u8 },
        /// Somebody types.
        Type { len: u8 },
        /// The daemon acts.
        Run,
        Step,
        /// Events are delivered.
        Dispatch,
        Stall { on: bool },
        StallReader { on: bool },
        SayConnected { connected: bool },
        /// Time goes by.
        Pass { milliseconds: u8 },
        /// An event without reason.
        Event,
        /// The daemon writes anywhere in its page.
        Raw { act: Hostile },
        /// Of a console with a number: what its backend is up to.
        Service,
        /// The toolstack takes it away.
        Detach,
        /// The backend is started again.
        Restart,
        /// It is connected again, as it is.
        Reconnect,
        /// It is closed, if it is there, and connected again.
        Anew,
        /// A node of the backend's says this, or goes.
        Say { node: u8, value: Value },
        /// The guest is suspended, and goes on in a new domain or where it was.
        Suspend { migrate: bool },
    }
}

impl Plan {
    fn faults(&self) -> Faults {
        let mut faults = Faults::new();
        let f = self.faults.map(chance);
        [faults.stalls, faults.short_read, faults.short_write, faults.spurious_event, faults.index_jump] = f;
        faults
    }
}

impl Op {
    /// What the model knows; nothing: an act of the peer's in its page, or of the device's.
    fn act(&self) -> Option<Act> {
        let time = |milliseconds: u8| Duration::from_millis(milliseconds.into());
        let len = |len: u16, most: usize| usize::from(len) % most;
        Some(match *self {
            Self::Write { len: n } => Act::Write(len(n, 3000)),
            Self::WriteAll { len: n, patience } => Act::WriteAll(len(n, 6000), time(patience)),
            Self::Text { len, ends, patience } => Act::Text(len.into(), ends, time(patience)),
            Self::Print { len } => Act::Print(len.into()),
            Self::Read { len: n } => Act::Read(len(n, 3000)),
            Self::Drain { patience } => Act::Drain(time(patience)),
            Self::WaitReadable { patience } => Act::WaitReadable(time(patience)),
            Self::WaitWritable { patience } => Act::WaitWritable(time(patience)),
            Self::WaitConnected { patience } => Act::WaitConnected(time(patience)),
            Self::PollReadable => Act::PollReadable,
            Self::Readable => Act::Readable,
            Self::Writable => Act::Writable,
            Self::Emergency { len: n } => Act::Emergency(len(n, 5000)),
            Self::Type { len } => Act::Type(len.into()),
            Self::Run => Act::Run,
            Self::Step => Act::Step,
            Self::Dispatch => Act::Dispatch,
            Self::Stall { on } => Act::Stall(on),
            Self::StallReader { on } => Act::StallReader(on),
            Self::SayConnected { connected } => Act::SayConnected(connected),
            Self::Pass { milliseconds } => Act::Pass(time(milliseconds)),
            Self::Event => Act::Event,
            _ => return None,
        })
    }
}

struct Run<'m> {
    model: Model<'m>,
    daemon: &'m MockConsoled,
    /// A daemon that hangs is asked for room very many times by last words: once is enough.
    emergency: bool,
    suspensions: u8,
    /// Does something in the page as its peer.
    peer: &'m dyn Fn(PeerOp),
}

impl<'m> Run<'m> {
    fn new(plan: &Plan, daemon: &'m MockConsoled, mut model: Model<'m>, peer: &'m dyn Fn(PeerOp)) -> Self {
        let faults = plan.faults();
        daemon.set_faults(Dice::new(plan.seed.into()), faults);
        if faults.index_jump != Faults::new().index_jump {
            model.lies();
        }
        Self { model, daemon, emergency: false, suspensions: 0, peer }
    }

    /// Whether the guest is to be suspended once more: that takes longer than anything else, and one time does not differ much from
    /// the next.
    fn suspends(&mut self) -> bool {
        self.suspensions += 1;
        self.suspensions <= 4
    }

    fn step(&mut self, console: &mut Console<'m, MockDomain>, op: &Op) {
        if let Op::Raw { act } = op {
            self.model.lies();
            (self.peer)(act.op());
        }
        if matches!(op, Op::Emergency { .. }) && core::mem::replace(&mut self.emergency, true) {
            return;
        }
        if let Some(act) = op.act() {
            self.model.act(console, &act);
        }
    }

    /// An honest daemon from here on, that does its work: all of it arrives.
    fn settle(&mut self, console: &mut Console<'m, MockDomain>) {
        self.daemon.set_faults(Dice::new(0), Faults::new());
        self.model.settle(console);
    }
}

/// Tries an input.
pub fn run(data: &[u8]) {
    attempt(data, |plan: &Plan| attempt_plan(plan));
}

fn attempt_plan(plan: &Plan) {
    if plan.second { second::attempt_plan(plan) } else { first(plan) }
}

fn first(plan: &Plan) {
    let machine = Machine::new();
    let Machine { guest, events, xen, .. } = &machine;
    let daemon = MockConsoled::connect(xen, guest);
    let peer = |act| {
        let page = SpecialPage::of(guest, HvmParam::CONSOLE_PFN);
        HostilePeer::<ConsoleLayout, _>::new(page).expect("a page is enough").apply(act);
    };
    let mut xs = None;
    let mut console = Console::new(events).expect("a console");
    let mut run = Run::new(plan, &daemon, Model::new(guest, events, &daemon), &peer);
    for op in &plan.ops.0 {
        xen.trace(|| format!("-- {op:?}"));
        match *op {
            Op::Suspend { migrate } => {
                if run.suspends() {
                    let xs = xs.get_or_insert_with(|| Xenstore::new(events).expect("a connection"));
                    machine.suspend_with(xs, &mut [&mut &machine.grants, &mut console], &mut (), migrate);
                    if migrate {
                        run.model.resumed(&mut console);
                    }
                }
            }
            _ => run.step(&mut console, op),
        }
    }
    run.settle(&mut console);
}

/// Inputs to begin with.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let session = || {
        vec![
            Op::Write { len: 2000 },
            Op::Type { len: 200 },
            Op::Writable,
            Op::Run,
            Op::Dispatch,
            Op::PollReadable,
            Op::Read { len: 100 },
            Op::WriteAll { len: 5000, patience: 3 },
            Op::Drain { patience: 5 },
            Op::WaitReadable { patience: 5 },
            Op::Readable,
            Op::Read { len: 2999 },
            Op::WaitConnected { patience: 1 },
            Op::Text { len: 90, ends: true, patience: 2 },
            Op::Print { len: 20 },
        ]
    };
    let suspended = || {
        let before = || [Op::Text { len: 30, ends: false, patience: 1 }, Op::Type { len: 20 }];
        let suspend = |migrate| before().into_iter().chain([Op::Suspend { migrate }, Op::Run, Op::Dispatch]);
        let unread = [Op::StallReader { on: true }].into_iter().chain(suspend(true));
        let hangs = [Op::StallReader { on: false }, Op::Stall { on: true }].into_iter().chain(suspend(true));
        let ops = suspend(true).chain(suspend(false)).chain(unread).chain(hangs);
        ops.chain([Op::Stall { on: false }, Op::Reconnect]).collect()
    };
    let plan = Plan { second: false, seed: 1, faults: [0; 5], ops: Ops(Vec::new()) };
    let with = |more: Vec<Op>| Plan { ops: Ops([session(), more, session()].concat()), ..plan.clone() };
    vec![
        ("session", with(vec![Op::Pass { milliseconds: 9 }]).bytes()),
        ("faults", Plan { faults: [140, 140, 140, 140, 0], ..with(vec![Op::Step]) }.bytes()),
        ("jumps", Plan { faults: [0, 0, 0, 0, 140], ..with(vec![Op::Step]) }.bytes()),
        (
            "hangs",
            with(vec![
                Op::Stall { on: true },
                Op::WriteAll { len: 5000, patience: 3 },
                Op::Emergency { len: 9 },
            ])
            .bytes(),
        ),
        (
            "unread",
            with(vec![
                Op::StallReader { on: true },
                Op::Write { len: 2999 },
                Op::Print { len: 50 },
                Op::Text { len: 60, ends: true, patience: 4 },
                Op::StallReader { on: false },
            ])
            .bytes(),
        ),
        (
            "away",
            with(vec![Op::SayConnected { connected: false }, Op::Text { len: 7, ends: false, patience: 0 }])
                .bytes(),
        ),
        (
            "events",
            with(
                (0..9)
                    .flat_map(|_| {
                        [Op::Event, Op::Dispatch, Op::Read { len: 1 }, Op::Pass { milliseconds: 1 }]
                    })
                    .collect(),
            )
            .bytes(),
        ),
        ("index", {
            let act = Hostile::Advance { cursor: 3, by: Number::Power { bit: 10, more: 1 } };
            with(vec![Op::Raw { act }]).bytes()
        }),
        ("suspended", with(suspended()).bytes()),
        ("second-suspended", Plan { second: true, ..with(suspended()) }.bytes()),
        ("second", Plan { second: true, ..with(vec![Op::Service, Op::Anew]) }.bytes()),
        (
            "second-detached",
            Plan { second: true, ..with(vec![Op::Detach, Op::Run, Op::Service, Op::Anew]) }.bytes(),
        ),
        (
            "second-hangs",
            Plan {
                second: true,
                ..with(vec![Op::Stall { on: true }, Op::Anew, Op::Stall { on: false }, Op::Anew])
            }
            .bytes(),
        ),
        (
            "second-restarted",
            Plan {
                second: true,
                ..with(vec![Op::Print { len: 9 }, Op::Restart, Op::Service, Op::Reconnect, Op::Service])
            }
            .bytes(),
        ),
        ("second-lies", {
            let act = Hostile::Advance { cursor: 3, by: Number::Power { bit: 10, more: 1 } };
            let value = Value::Number { number: Number::Up { by: 6 } };
            Plan { second: true, ..with(vec![Op::Raw { act }, Op::Say { node: 0, value }, Op::Service]) }
                .bytes()
        }),
    ]
}
