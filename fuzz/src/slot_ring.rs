//! A slot ring whose other end does anything, at any time.
//!
//! The front believes an index that is possible and nothing else, and a ring that is broken stays so; no more responses
//! come than there were requests; the back's end does the same with requests.

use xen_ring::Protocol;
use xen_ring::mock::model::{self, FrontAct};
use xen_ring::mock::{BackOp, Field};

use crate::input::{Input, Number, Ops, input};
use crate::machine::attempt;

/// A protocol as small as that of network devices.
struct Net;
impl Protocol for Net {
    type Request = [u8; 12];
    type Response = [u8; 4];
}

/// One whose slots are not a power of two in size.
struct Blk;
impl Protocol for Blk {
    type Request = [u64; 14];
    type Response = [u64; 2];
}

input! {
    /// What is tried.
    pub enum Plan {
        /// A front, whose back acts between its calls.
        Front { start: Number, acts: Ops<Act> },
        /// A back, whose front does.
        Back { start: Number, acts: Ops<BackAct> },
        /// A front, whose back acts between any two accesses to memory.
        Meddled { start: Number, every: u8, acts: Ops<Act> },
        /// The same with larger slots, in two pages.
        Large { start: Number, every: u8, acts: Ops<Act> },
    }

    /// What happens next to a front.
    pub enum Act {
        Push { value: u8, times: u8 },
        Publish,
        Pop { times: u8 },
        PopBatch { count: u8 },
        PopEach { count: u8 },
        Look,
        Arm { skip: Number },
        Back { act: Hostile },
    }

    /// What happens next to a back.
    pub enum BackAct {
        /// Some more requests, as far as there is room.
        Requests { count: u8, value: u8 },
        Pop { times: u8 },
        Respond { times: u8 },
        Publish,
        Look,
        Arm,
        Front { act: Hostile },
    }

    /// What the other end does.
    pub enum Hostile {
        Answer { count: u8 },
        Set { field: u8, value: Number },
        Advance { field: u8, by: Number },
        Slot { index: Number, offset: u8, bytes: [u8; 8] },
        Fill { value: u8 },
    }
}

impl Hostile {
    fn op(&self) -> BackOp {
        let field = |field: u8| Field::ALL[usize::from(field % 4)];
        match *self {
            Self::Answer { count } => BackOp::Answer { count: count.into() },
            Self::Set { field: which, ref value } => BackOp::Set { field: field(which), value: value.get() },
            Self::Advance { field: which, ref by } => BackOp::Advance { field: field(which), by: by.get() },
            Self::Slot { ref index, offset, bytes } => {
                BackOp::Slot { index: index.get(), offset: offset.into(), bytes }
            }
            Self::Fill { value } => BackOp::Fill { value },
        }
    }
}

impl Act {
    /// The same as the model's.
    fn act(&self) -> FrontAct {
        match *self {
            Self::Push { value, times } => FrontAct::Push(value, u32::from(times % 80)),
            Self::Publish => FrontAct::Publish,
            Self::Pop { times } => FrontAct::Pop(1 + u32::from(times % 80)),
            Self::PopBatch { count } => FrontAct::PopBatch(count.into()),
            Self::PopEach { count } => FrontAct::PopEach(count.into()),
            Self::Look => FrontAct::Look,
            Self::Arm { ref skip } => FrontAct::Arm(skip.get()),
            Self::Back { ref act } => FrontAct::Back(act.op()),
        }
    }
}

impl BackAct {
    /// The same as the model's.
    fn act(&self) -> model::BackAct {
        match *self {
            Self::Requests { count, value } => model::BackAct::Requests(count.into(), value),
            Self::Pop { times } => model::BackAct::Pop(1 + u32::from(times % 80)),
            Self::Respond { times } => model::BackAct::Respond(times.into()),
            Self::Publish => model::BackAct::Publish,
            Self::Look => model::BackAct::Look,
            Self::Arm => model::BackAct::Arm,
            Self::Front { ref act } => model::BackAct::Front(act.op()),
        }
    }
}

/// Tries an input.
pub fn run(data: &[u8]) {
    let every = |every: u8| u32::from(every % 5) + 1;
    attempt(data, |plan: &Plan| match plan {
        Plan::Front { start, acts } => model::front(start.get(), acts.0.iter().map(Act::act)),
        Plan::Back { start, acts } => model::back(start.get(), acts.0.iter().map(BackAct::act)),
        Plan::Meddled { start, every: n, acts } => {
            model::meddled_front::<Net>(1, start.get(), every(*n), &[7; 12], acts.0.iter().map(Act::act));
        }
        Plan::Large { start, every: n, acts } => {
            model::meddled_front::<Blk>(2, start.get(), every(*n), &[7; 14], acts.0.iter().map(Act::act));
        }
    });
}

/// Inputs to begin with.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let start = || Number::Down { by: 100 };
    let traffic = || {
        vec![
            Act::Push { value: 1, times: 70 },
            Act::Publish,
            Act::Back { act: Hostile::Answer { count: 60 } },
            Act::Pop { times: 9 },
            Act::Arm { skip: Number::Up { by: 3 } },
            Act::Look,
            Act::PopBatch { count: 5 },
            Act::PopEach { count: 5 },
            Act::Pop { times: 79 },
        ]
    };
    let with = |act| Ops([traffic(), vec![Act::Back { act }], traffic()].concat());
    let jump = |by| Hostile::Advance { field: 2, by };
    let fill = || Hostile::Fill { value: 9 };
    let requests = vec![
        BackAct::Requests { count: 90, value: 3 },
        BackAct::Pop { times: 79 },
        BackAct::Respond { times: 50 },
        BackAct::Publish,
        BackAct::Look,
        BackAct::Arm,
    ];
    let and = |act| Ops([requests.clone(), vec![BackAct::Front { act }], requests.clone()].concat());
    vec![
        ("traffic", Plan::Front { start: start(), acts: with(fill()) }.bytes()),
        ("ahead", Plan::Front { start: start(), acts: with(jump(Number::Up { by: 200 })) }.bytes()),
        ("back", Plan::Front { start: start(), acts: with(jump(Number::Down { by: 1 })) }.bytes()),
        (
            "meddled",
            Plan::Meddled { start: start(), every: 1, acts: with(jump(Number::Up { by: 1 })) }.bytes(),
        ),
        ("large", Plan::Large { start: start(), every: 0, acts: with(fill()) }.bytes()),
        ("requests", Plan::Back { start: start(), acts: and(fill()) }.bytes()),
        ("requests-ahead", {
            let act = Hostile::Advance { field: 0, by: Number::Power { bit: 8, more: 1 } };
            Plan::Back { start: start(), acts: and(act) }.bytes()
        }),
    ]
}
