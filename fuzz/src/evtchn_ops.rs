//! Two domains that do anything at any time with event channels, each with either ABI, against the model beside the mock
//! ([`model`]).

use xen_evtchn::mock::{Faults, model};
use xen_evtchn::{Abi, Port};
use xen_hypercall::DomId;

use crate::input::{Input, Number, Ops, chance, input};
use crate::machine::{Xen, attempt};

input! {
    /// What is tried.
    pub struct Plan {
        /// Whether each domain uses the FIFO ABI.
        fifo: [u8; 2],
        ops: Ops<Op>,
    }

    /// One end of one of the connections that there are.
    pub struct At {
        link: u8,
        side: bool,
    }

    /// What happens next.
    pub enum Op {
        Open { side: bool },
        Bind { link: u8 },
        Send { at: At, times: u8 },
        /// An event that nobody sent.
        Spurious { at: At },
        Mask { at: At },
        Unmask { at: At },
        Take { at: At },
        Late { at: At, on: bool },
        Done { at: At, work: bool },
        Priority { at: At, priority: u8 },
        Pass { milliseconds: u16 },
        Close { at: At },
        Dispatch { side: bool },
        /// Binds to a port that is most likely not there, or adopts it.
        Guess { side: bool, port: Number, adopt: bool },
        /// From now on events are lost, late, doubled or without reason so often; with zeros it is over.
        Faults { seed: u8, often: [u8; 4], only: Option<bool> },
        /// The machine goes on a step: late events arrive.
        Step,
        /// A domain goes on as a new one.
        Migrate { side: bool },
    }
}

/// Tries an input.
pub fn run(data: &[u8]) {
    attempt(data, |plan: &Plan| attempt_plan(plan));
}

fn attempt_plan(plan: &Plan) {
    let abis = plan.fifo.map(|fifo| if fifo % 2 == 1 { Abi::Fifo } else { Abi::TwoLevel });
    model::run(&Xen::new(), abis, plan.ops.0.iter().map(Op::meant));
}

impl At {
    fn meant(&self) -> model::At {
        model::At { link: self.link.into(), side: self.side.into() }
    }
}

impl Op {
    fn meant(&self) -> model::Op {
        use model::Op as Meant;
        match *self {
            Self::Open { side } => Meant::Open { side: side.into() },
            Self::Bind { link } => Meant::Bind { link: link.into() },
            Self::Send { ref at, times } => Meant::Send { at: at.meant(), times: usize::from(1 + times % 4) },
            Self::Spurious { ref at } => Meant::Spurious { at: at.meant() },
            Self::Mask { ref at } => Meant::Mask { at: at.meant() },
            Self::Unmask { ref at } => Meant::Unmask { at: at.meant() },
            Self::Take { ref at } => Meant::Take { at: at.meant() },
            Self::Late { ref at, on } => Meant::Late { at: at.meant(), on },
            Self::Done { ref at, work } => Meant::Done { at: at.meant(), work },
            Self::Priority { ref at, priority } => {
                Meant::Priority { at: at.meant(), priority: priority % 17 }
            }
            Self::Pass { milliseconds } => Meant::Pass { milliseconds: milliseconds.into() },
            Self::Close { ref at } => Meant::Close { at: at.meant() },
            Self::Dispatch { side } => Meant::Dispatch { side: side.into() },
            Self::Guess { side, ref port, adopt } => {
                Meant::Guess { side: side.into(), port: Port(port.get()), adopt }
            }
            Self::Faults { seed, often, only } => {
                let mut faults = Faults::new();
                [faults.lost, faults.late, faults.doubled, faults.spurious] = often.map(chance);
                faults.only = only.map(|side| DomId(side.into()));
                Meant::Faults { seed: seed.into(), faults }
            }
            Self::Step => Meant::Step,
            Self::Migrate { side } => Meant::Migrate { side: side.into() },
        }
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let at = |link, side| At { link, side };
    let ops = || {
        Ops(vec![
            Op::Open { side: false },
            Op::Open { side: true },
            Op::Bind { link: 0 },
            Op::Bind { link: 1 },
            Op::Dispatch { side: true },
            Op::Send { at: at(0, false), times: 2 },
            Op::Mask { at: at(1, true) },
            Op::Send { at: at(1, false), times: 0 },
            Op::Dispatch { side: true },
            Op::Unmask { at: at(1, true) },
            Op::Dispatch { side: true },
            Op::Take { at: at(0, true) },
            Op::Late { at: at(0, true), on: true },
            Op::Spurious { at: at(0, true) },
            Op::Dispatch { side: true },
            Op::Done { at: at(0, true), work: false },
            Op::Spurious { at: at(0, true) },
            Op::Dispatch { side: true },
            Op::Done { at: at(0, true), work: false },
            Op::Pass { milliseconds: 5 },
            Op::Priority { at: at(0, true), priority: 0 },
            Op::Guess { side: true, port: Number::Up { by: 7 }, adopt: false },
            Op::Guess { side: true, port: Number::Power { bit: 17, more: 0 }, adopt: false },
            Op::Close { at: at(0, false) },
            Op::Send { at: at(0, true), times: 1 },
        ])
    };
    let faulty = |often| {
        let traffic = [
            Op::Send { at: at(0, false), times: 3 },
            Op::Step,
            Op::Dispatch { side: true },
            Op::Send { at: at(1, false), times: 3 },
            Op::Dispatch { side: true },
        ];
        let mut faulty = ops();
        faulty.0.truncate(20);
        faulty.0.push(Op::Faults { seed: 1, often, only: None });
        faulty.0.extend(traffic.iter().cycle().take(20).cloned());
        faulty.0.push(Op::Faults { seed: 1, often: [0; 4], only: None });
        faulty.0.extend(traffic);
        faulty
    };
    let names = ["two-level", "fifo", "mixed", "mixed-too"];
    let fifo = [[0, 0], [1, 1], [0, 1], [1, 0]];
    let mut seeds: Vec<_> =
        names.into_iter().zip(fifo).map(|(name, fifo)| (name, Plan { fifo, ops: ops() }.bytes())).collect();
    let mut migrated = ops();
    for side in [true, false] {
        migrated.0.push(Op::Migrate { side });
        migrated.0.extend(ops().0);
    }
    seeds.push(("migrated", Plan { fifo: [0, 1], ops: migrated }.bytes()));
    seeds.push(("faults", Plan { fifo: [0, 1], ops: faulty([140; 4]) }.bytes()));
    seeds.push(("late", Plan { fifo: [1, 0], ops: faulty([0, 255, 0, 0]) }.bytes()));
    seeds
}
