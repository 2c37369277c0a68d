//! A console, the first or one through xenstore, with a daemon that fails, hangs, or writes anywhere in the page.
//!
//! What was written comes out, and what was typed comes in, in order and once, as long as the daemon does not lie; every
//! call ends in time; only a daemon that lies breaks the console.

mod second;

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use xen_console::mock::{Faults, MockConsoled};
use xen_console::{Console, Error};
use xen_evtchn::EventChannels;
use xen_hypercall::VcpuId;
use xen_hypercall::hvm::HvmParam;
use xen_hypercall::mock::{Dice, MockDomain};
use xen_ring::ConsoleLayout;
use xen_ring::mock::{HostilePeer, PeerOp};

use crate::byte_ring::Hostile;
use crate::input::{Input, Number, Ops, Value, chance, input};
use crate::machine::{GUEST, SpecialPage, Xen, attempt};

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
        WriteText { number: u32 },
        Read { len: u16 },
        Drain { patience: u8 },
        WaitReadable { patience: u8 },
        PollReadable,
        Readable,
        Writable,
        Emergency { len: u16 },
        IsConnected,
        /// Somebody types.
        Type { len: u8 },
        /// The daemon acts.
        Run,
        Step,
        /// Events are delivered.
        Dispatch,
        Stall { on: bool },
        SayConnected { connected: bool },
        /// Time goes by.
        Pass { milliseconds: u8 },
        /// An event without reason.
        Event,
        /// The daemon writes anywhere in its page.
        Raw { act: Hostile },
        /// Of a console with a number: whether it is to end.
        IsClosing,
        /// The toolstack takes it away.
        Detach,
        /// It is closed, if it is there, and connected again.
        Anew,
        /// A node of the backend's says this, or goes.
        Say { node: u8, value: Value },
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

/// One direction: bytes that follow from how many there were before.
#[derive(Default)]
struct Direction {
    sent: usize,
    arrived: usize,
}

fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

impl Direction {
    fn next(&self, len: usize) -> Vec<u8> {
        (self.sent..self.sent + len).map(byte).collect()
    }

    fn arrive(&mut self, bytes: &[u8]) {
        for got in bytes {
            assert!(
                self.arrived < self.sent && *got == byte(self.arrived),
                "byte {} is another",
                self.arrived
            );
            self.arrived += 1;
        }
    }
}

struct Run<'m> {
    daemon: &'m MockConsoled,
    events: &'m EventChannels<MockDomain>,
    guest: &'m MockDomain,
    up: Direction,
    down: Direction,
    /// The daemon lied, or what was written is not known byte by byte.
    lied: bool,
    jumps: bool,
    broken: bool,
    emergency: bool,
    /// Does something in the page as its peer.
    peer: &'m dyn Fn(PeerOp),
}

impl<'m> Run<'m> {
    fn new(
        plan: &Plan,
        daemon: &'m MockConsoled,
        events: &'m EventChannels<MockDomain>,
        guest: &'m MockDomain,
        peer: &'m dyn Fn(PeerOp),
    ) -> Self {
        let faults = plan.faults();
        daemon.set_faults(Dice::new(plan.seed.into()), faults);
        Self {
            daemon,
            events,
            guest,
            up: Direction::default(),
            down: Direction::default(),
            lied: false,
            jumps: faults.index_jump != Faults::new().index_jump,
            broken: false,
            emergency: false,
            peer,
        }
    }

    /// An honest daemon from here on, that does its work: all of it arrives.
    fn settle(&mut self, console: &mut Console<'m, MockDomain>) {
        if self.lied || self.jumps {
            return;
        }
        for _ in 0..1 + self.down.sent / 1024 {
            self.step(console, &Op::Pass { milliseconds: 255 });
            self.step(console, &Op::Dispatch);
            self.step(console, &Op::Write { len: 1 });
            self.step(console, &Op::Run);
            self.step(console, &Op::Read { len: 2999 });
        }
        self.step(console, &Op::Run);
        self.step(console, &Op::Read { len: 2999 });
        assert_eq!(self.up.arrived, self.up.sent, "what was written comes out");
        assert_eq!(self.down.arrived, self.down.sent, "what was typed comes in");
    }

    fn check<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => {
                assert!(!self.broken, "broken means broken");
                Some(value)
            }
            Err(Error::Broken(violation)) => {
                assert!(self.lied || self.jumps, "an honest daemon, and {violation}");
                (self.broken, self.lied) = (true, true);
                None
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn collect(&mut self) {
        let output = self.daemon.take_output();
        // An index may jump at any time without being seen for what it is: then bytes are lost or come again.
        if !self.lied && !self.jumps {
            self.up.arrive(&output);
        }
    }

    fn step(&mut self, console: &mut Console<'m, MockDomain>, op: &Op) {
        let xen = self.guest.xen();
        let before = xen.now();
        let patience = |patience: u8| Duration::from_millis(patience.into());
        let mut most = Duration::ZERO;
        match *op {
            Op::Write { len } => {
                let data = self.up.next(usize::from(len) % 3000);
                let written = console.write(&data);
                self.up.sent += self.check(written).unwrap_or(0);
            }
            Op::WriteAll { len, patience: waits } => {
                let data = self.up.next(usize::from(len) % 6000);
                most = patience(waits);
                let written = console.write_all(&data, patience(waits));
                if self.broken || written.is_err() {
                    // How much went before is not told.
                    self.lied = true;
                }
                self.up.sent += self.check(written).unwrap_or(0);
            }
            Op::WriteText { number } => {
                use std::fmt::Write;
                self.lied = true;
                let _ = writeln!(console, "{number}");
            }
            Op::Read { len } => {
                let mut out = vec![0; usize::from(len) % 3000];
                let read = console.read(&mut out);
                let count = self.check(read).unwrap_or(0);
                if !self.lied && !self.jumps {
                    self.down.arrive(&out[..count]);
                }
            }
            Op::Drain { patience: waits } => {
                most = patience(waits);
                let drained = console.drain(patience(waits));
                self.check(drained);
            }
            Op::WaitReadable { patience: waits } => {
                most = patience(waits);
                let readable = console.wait_readable(before + most);
                self.check(readable);
            }
            Op::PollReadable => {
                let mut cx = Context::from_waker(Waker::noop());
                if let Poll::Ready(result) = console.poll_readable(&mut cx) {
                    self.check(result);
                }
            }
            Op::Readable => {
                let readable = console.readable();
                let count = self.check(readable).unwrap_or(0);
                assert!(count <= 1024);
            }
            Op::Writable => {
                let writable = console.writable();
                let room = self.check(writable).unwrap_or(0);
                assert!(room <= 2048);
            }
            // A daemon that hangs is waited for by very many yields: once is enough.
            Op::Emergency { .. } if self.emergency => {}
            Op::Emergency { len } => {
                (self.lied, self.emergency) = (true, true);
                console.emergency(&vec![b'!'; usize::from(len) % 5000]);
            }
            Op::IsConnected => drop(console.is_connected()),
            Op::Type { len } => {
                let bytes = self.down.next(len.into());
                self.daemon.type_in(&bytes);
                self.down.sent += bytes.len();
            }
            Op::Run => assert!(xen.run_until_idle(10_000) < 10_000, "the daemon never ends"),
            Op::Step => drop(xen.step()),
            Op::Dispatch => {
                self.events.unmask_due();
                self.events.dispatch(VcpuId(0));
            }
            Op::Stall { on } => self.daemon.stall(on),
            Op::SayConnected { connected } => self.daemon.say_connected(connected),
            Op::Pass { milliseconds } => {
                most = Duration::from_millis(milliseconds.into());
                xen.advance(most);
            }
            Op::Event => drop(xen_evtchn::mock::inject(self.guest, console.channel().port())),
            Op::Raw { ref act } => {
                self.lied = true;
                (self.peer)(act.op());
            }
            Op::IsClosing | Op::Detach | Op::Anew | Op::Say { .. } => {}
        }
        let took = xen.now() - before;
        assert!(took <= most, "{op:?} took {took:?}");
        self.collect();
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
    let xen = Xen::new();
    let (guest, events) = xen_console::mock::guest(&xen, GUEST);
    let daemon = MockConsoled::connect(&xen, &guest);
    let peer = |act| {
        let page = SpecialPage::of(&guest, HvmParam::CONSOLE_PFN);
        HostilePeer::<ConsoleLayout, _>::new(page).expect("a page is enough").apply(act);
    };
    let mut console = Console::new(&events).expect("a console");
    let mut run = Run::new(plan, &daemon, &events, &guest, &peer);
    for op in &plan.ops.0 {
        xen.trace(|| format!("-- {op:?}"));
        run.step(&mut console, op);
    }
    daemon.set_faults(Dice::new(0), Faults::new());
    daemon.stall(false);
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
            Op::IsConnected,
        ]
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
        ("away", with(vec![Op::SayConnected { connected: false }, Op::WriteText { number: 7 }]).bytes()),
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
        ("second", Plan { second: true, ..with(vec![Op::IsClosing, Op::Anew]) }.bytes()),
        (
            "second-detached",
            Plan { second: true, ..with(vec![Op::Detach, Op::Run, Op::IsClosing, Op::Anew]) }.bytes(),
        ),
        (
            "second-hangs",
            Plan {
                second: true,
                ..with(vec![Op::Stall { on: true }, Op::Anew, Op::Stall { on: false }, Op::Anew])
            }
            .bytes(),
        ),
        ("second-lies", {
            let act = Hostile::Advance { cursor: 3, by: Number::Power { bit: 10, more: 1 } };
            let value = Value::Number { number: Number::Up { by: 6 } };
            Plan { second: true, ..with(vec![Op::Raw { act }, Op::Say { node: 0, value }, Op::IsClosing]) }
                .bytes()
        }),
    ]
}
