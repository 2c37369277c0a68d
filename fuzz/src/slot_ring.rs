//! A slot ring whose other end does anything, at any time.
//!
//! The front believes an index that is possible and nothing else, and a ring that is broken stays so; no more responses
//! come than there were requests; the back's end does the same with requests.

use std::cell::RefCell;
use std::rc::Rc;

use xen_ring::mock::{BackOp, Field, HostileBack, Meddled, SharedPages};
use xen_ring::{Back, Front, Protocol, RingError, Violation};

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

const SLOTS: u32 = 256;

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

/// What an end may believe of the other's index.
struct Belief {
    taken: u32,
    available: u32,
    limit: u32,
}

impl Belief {
    fn judge(&mut self, index: u32) -> Result<bool, RingError> {
        let behind = index.wrapping_sub(self.taken) < self.available.wrapping_sub(self.taken);
        // Counted out, not computed: the index is one of those from what is taken to what is possible.
        let possible = (0..=self.limit).any(|n| self.taken.wrapping_add(n) == index);
        if behind || !possible {
            return Err(RingError::Broken(Violation { index, ours: self.taken, limit: self.limit }));
        }
        self.available = index;
        Ok(self.available != self.taken)
    }
}

fn front(start: u32, acts: &[Act]) {
    let shared = SharedPages::new(1);
    let mut front = Front::<Net, _>::init_at(shared.clone(), start).expect("a page is enough");
    let mut back = HostileBack::<Net, _>::new(shared.clone()).expect("a page is enough");
    let mut belief = Belief { taken: start, available: start, limit: 0 };
    let (mut pushed, mut published, mut broken) = (start, start, None);
    for act in acts {
        if let Act::Back { act } = act {
            back.apply(act.op());
            continue;
        }
        if let Some(error) = broken {
            let before = shared.snapshot();
            assert_eq!(front.free(), 0);
            assert_eq!(front.push(&[0; 12]), Err(error));
            assert_eq!(front.publish(), Err(error));
            assert_eq!(front.pop(), Err(error));
            assert_eq!(front.arm(), Err(error));
            assert_eq!(shared.snapshot(), before, "a broken ring is left alone");
            continue;
        }
        belief.limit = published.wrapping_sub(belief.taken);
        let result = match *act {
            Act::Push { value, times } => {
                for _ in 0..times % 80 {
                    let full = pushed.wrapping_sub(belief.taken) == SLOTS;
                    let expected = if full { Err(RingError::Full) } else { Ok(pushed) };
                    assert_eq!(front.push(&[value; 12]), expected);
                    pushed = pushed.wrapping_add(u32::from(!full));
                }
                Ok(())
            }
            Act::Publish => {
                let event = back.get(Field::ReqEvent);
                let count = pushed.wrapping_sub(published);
                let notify = (1..=count).any(|n| published.wrapping_add(n) == event);
                assert_eq!(front.publish(), Ok(notify));
                published = pushed;
                assert!(count == 0 || back.get(Field::ReqProd) == published);
                Ok(())
            }
            Act::Pop { times } => (0..1 + times % 80).try_for_each(|_| {
                let known = belief.available != belief.taken;
                let there = if known { Ok(true) } else { belief.judge(back.get(Field::RspProd)) };
                let slot: [u8; 12] = back.request(belief.taken);
                let first = [slot[0], slot[1], slot[2], slot[3]];
                assert_eq!(front.pop(), there.map(|there| there.then_some(first)));
                belief.taken = belief.taken.wrapping_add(u32::from(there == Ok(true)));
                belief.limit = published.wrapping_sub(belief.taken);
                there.map(drop)
            }),
            Act::Look => {
                let known = belief.available != belief.taken;
                let there = if known { Ok(true) } else { belief.judge(back.get(Field::RspProd)) };
                assert_eq!(front.has_responses(), there);
                there.map(drop)
            }
            Act::Arm { ref skip } => {
                let there = belief.judge(back.get(Field::RspProd));
                assert_eq!(front.arm_after(skip.get()), there);
                let event = belief.taken.wrapping_add(skip.get()).wrapping_add(1);
                assert_eq!(back.get(Field::RspEvent), event);
                there.map(drop)
            }
            Act::Back { .. } => Ok(()),
        };
        broken = result.err();
        assert_eq!(front.is_broken(), broken.is_some());
    }
}

fn back(start: u32, acts: &[BackAct]) {
    let shared = SharedPages::new(1);
    Front::<Net, _>::init_at(shared.clone(), start).expect("a page is enough");
    let mut back = Back::<Net, _>::attach_at(shared.clone(), start).expect("a page is enough");
    let mut raw = HostileBack::<Net, _>::new(shared).expect("a page is enough");
    let mut belief = Belief { taken: start, available: start, limit: SLOTS };
    let (mut pushed, mut published, mut broken) = (start, start, None);
    for act in acts {
        if let BackAct::Front { act } = act {
            raw.apply(act.op());
            continue;
        }
        if let Some(error) = broken {
            assert!(back.is_broken());
            assert_eq!(back.pop(), Err(error));
            assert_eq!(back.push(&[0; 4]), Err(error));
            assert_eq!(back.publish(), Err(error));
            assert_eq!(back.arm(), Err(error));
            continue;
        }
        // A slot is free for a request again once its response is published.
        belief.limit = SLOTS - belief.taken.wrapping_sub(published);
        match *act {
            BackAct::Requests { count, value } => {
                let room = SLOTS - raw.get(Field::ReqProd).wrapping_sub(published).min(SLOTS);
                raw.apply(BackOp::Fill { value });
                raw.advance(Field::ReqProd, room.min(count.into()));
            }
            BackAct::Pop { times } => {
                for _ in 0..1 + times % 80 {
                    let known = belief.available != belief.taken;
                    let there = if known { Ok(true) } else { belief.judge(raw.get(Field::ReqProd)) };
                    let slot = raw.request(belief.taken);
                    assert_eq!(back.pop(), there.map(|there| there.then_some(slot)));
                    belief.taken = belief.taken.wrapping_add(u32::from(there == Ok(true)));
                    belief.limit = SLOTS - belief.taken.wrapping_sub(published);
                    broken = there.err();
                    if there != Ok(true) {
                        break;
                    }
                }
            }
            BackAct::Respond { times } => {
                for _ in 0..times {
                    assert_eq!(back.unanswered(), belief.taken.wrapping_sub(pushed));
                    if pushed == belief.taken {
                        assert_eq!(back.push(&[0; 4]), Err(RingError::Full));
                        break;
                    }
                    assert_eq!(back.push(&[1; 4]), Ok(()));
                    pushed = pushed.wrapping_add(1);
                }
            }
            BackAct::Publish => {
                let event = raw.get(Field::RspEvent);
                let count = pushed.wrapping_sub(published);
                let notify = (1..=count).any(|n| published.wrapping_add(n) == event);
                assert_eq!(back.publish(), Ok(notify));
                published = pushed;
            }
            BackAct::Arm => {
                let there = belief.judge(raw.get(Field::ReqProd));
                assert_eq!(back.arm(), there);
                broken = there.err();
            }
            BackAct::Front { .. } => {}
        }
    }
}

/// The hostile acts of the input happen between accesses instead, one each time `every` of them have passed.
fn meddled<P: Protocol>(pages: usize, start: u32, every: u8, acts: &[Act], request: &P::Request) {
    let shared = SharedPages::new(pages);
    let mut back = HostileBack::<P, _>::new(shared.clone()).expect("pages enough");
    let slots = back.slots();
    let waiting = Rc::new(RefCell::new(Vec::new()));
    let (queue, mut count) = (Rc::clone(&waiting), 0_u32);
    let meddled = Meddled::new(shared, move |_| {
        count = count.wrapping_add(1);
        if count.is_multiple_of(u32::from(every % 5) + 1)
            && let Some(op) = queue.borrow_mut().pop()
        {
            back.apply(op);
        }
    });
    let mut front = Front::<P, _>::init_at(meddled, start).expect("pages enough");
    let (mut published, mut responses) = (0_u32, 0_u32);
    let mut broken = None;
    for act in acts {
        let result = match *act {
            Act::Push { times, .. } => (0..times % 80).try_for_each(|_| match front.push(request) {
                Err(RingError::Full) => Ok(()),
                pushed => pushed.map(drop),
            }),
            Act::Publish => {
                let before = front.in_flight();
                front.publish().map(|_| published += front.in_flight() - before)
            }
            Act::Pop { times } => (0..1 + times % 80)
                .try_for_each(|_| front.pop().map(|response| responses += u32::from(response.is_some()))),
            Act::Look => front.has_responses().map(drop),
            Act::Arm { ref skip } => front.arm_after(skip.get()).map(drop),
            Act::Back { ref act } => {
                waiting.borrow_mut().push(act.op());
                Ok(())
            }
        };
        assert!(front.in_flight() <= slots && responses <= published, "more responses than requests");
        if let (Err(error), false) = (result, matches!(act, Act::Back { .. })) {
            assert!(matches!(error, RingError::Broken(_)));
            assert!(front.is_broken() && *broken.get_or_insert(error) == error, "broken means broken");
        } else if !matches!(act, Act::Back { .. } | Act::Push { times: _, .. }) {
            assert!(broken.is_none(), "works again");
        }
    }
}

/// Tries an input.
pub fn run(data: &[u8]) {
    attempt(data, |plan: &Plan| match plan {
        Plan::Front { start, acts } => front(start.get(), &acts.0),
        Plan::Back { start, acts } => back(start.get(), &acts.0),
        Plan::Meddled { start, every, acts } => meddled::<Net>(1, start.get(), *every, &acts.0, &[7; 12]),
        Plan::Large { start, every, acts } => meddled::<Blk>(2, start.get(), *every, &acts.0, &[7; 14]),
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
