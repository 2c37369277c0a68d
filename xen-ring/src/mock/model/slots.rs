//! Slot rings.

use std::vec;
use std::vec::Vec;

use super::meddle;
use crate::mock::{BackOp, Field, HostileBack, SharedPages};
use crate::{Back, Front, Protocol, RingError, Violation};

/// A protocol as small as that of network devices.
struct Net;
impl Protocol for Net {
    type Request = [u8; 12];
    type Response = [u8; 4];
}

/// How many slots of [`Net`] a page has.
const SLOTS: u32 = 256;

/// What happens next to a front.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrontAct {
    /// [`Front::push`], of requests whose bytes have this value, so many times.
    Push(u8, u32),
    /// [`Front::publish`].
    Publish,
    /// [`Front::pop`], so many times, until it fails.
    Pop(u32),
    /// [`Front::pop_batch`], of so many at most.
    PopBatch(u32),
    /// [`Front::responses`], of which so many are taken.
    PopEach(u32),
    /// [`Front::has_responses`].
    Look,
    /// [`Front::arm_after`], with so many to skip.
    Arm(u32),
    /// The back does something.
    Back(BackOp),
}

/// What happens next to a back.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackAct {
    /// A front that keeps to the rules shows so many requests, as far as there is room, whose bytes have this value.
    Requests(u32, u8),
    /// [`Back::pop`], so many times, until it fails or there is none.
    Pop(u32),
    /// [`Back::push`], so many times.
    Respond(u32),
    /// [`Back::publish`].
    Publish,
    /// [`Back::has_requests`].
    Look,
    /// [`Back::arm`].
    Arm,
    /// The front does something.
    Front(BackOp),
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

    fn known(&self) -> u32 {
        self.available.wrapping_sub(self.taken)
    }

    /// Looks at the index if nothing is known to be there.
    fn look(&mut self, index: u32) -> Result<bool, RingError> {
        if self.known() > 0 { Ok(true) } else { self.judge(index) }
    }
}

/// Plays acts on a front whose indices begin at `start`. It believes an index that is possible and nothing else, and no more
/// responses come than there were requests; a ring that is broken stays so, and its memory is left alone.
///
/// # Panics
/// When it is not so.
pub fn front(start: u32, acts: impl IntoIterator<Item = FrontAct>) {
    let shared = SharedPages::new(1);
    let mut front = Front::<Net, _>::init_at(shared.clone(), start).expect("a page is enough");
    let mut back = HostileBack::<Net, _>::new(shared.clone()).expect("a page is enough");
    let mut belief = Belief { taken: start, available: start, limit: 0 };
    let (mut pushed, mut published, mut broken) = (start, start, None);
    let response = |back: &mut HostileBack<Net, SharedPages>, index| -> [u8; 4] {
        let [a, b, c, d, ..] = back.request(index);
        [a, b, c, d]
    };
    for act in acts {
        if let FrontAct::Back(op) = act {
            back.apply(op);
            continue;
        }
        if let Some(error) = broken {
            let before = shared.snapshot();
            assert!(front.is_broken());
            assert_eq!(front.free(), 0);
            assert_eq!(front.push(&[0; 12]), Err(error));
            assert_eq!(front.publish(), Err(error));
            assert_eq!(front.pop(), Err(error));
            assert_eq!(front.push_batch(&[[0; 12]; 3]), Err(error));
            assert_eq!(front.pop_batch(&mut [[0; 4]; 3]), Err(error));
            assert_eq!(front.has_responses(), Err(error));
            assert_eq!(front.arm(), Err(error));
            assert_eq!(shared.snapshot(), before, "a broken ring is left alone");
            continue;
        }
        belief.limit = published.wrapping_sub(belief.taken);
        let result = match act {
            FrontAct::Push(value, times) => {
                for _ in 0..times {
                    let full = pushed.wrapping_sub(belief.taken) == SLOTS;
                    let expected = if full { Err(RingError::Full) } else { Ok(pushed) };
                    assert_eq!(front.push(&[value; 12]), expected);
                    pushed = pushed.wrapping_add(u32::from(!full));
                }
                Ok(())
            }
            FrontAct::Publish => {
                let event = back.get(Field::ReqEvent);
                let count = pushed.wrapping_sub(published);
                let notify = (1..=count).any(|n| published.wrapping_add(n) == event);
                assert_eq!(front.publish(), Ok(notify));
                published = pushed;
                // What is ours is right again, whatever the peer had put there.
                assert!(count == 0 || back.get(Field::ReqProd) == published);
                Ok(())
            }
            FrontAct::Pop(times) => (0..times).try_for_each(|_| {
                let there = belief.look(back.get(Field::RspProd));
                let first = response(&mut back, belief.taken);
                assert_eq!(front.pop(), there.map(|there| there.then_some(first)));
                belief.taken = belief.taken.wrapping_add(u32::from(there == Ok(true)));
                belief.limit = published.wrapping_sub(belief.taken);
                there.map(drop)
            }),
            FrontAct::PopBatch(count) | FrontAct::PopEach(count) => {
                let each = matches!(act, FrontAct::PopEach(_));
                let there = match each || belief.known() < count {
                    true => belief.judge(back.get(Field::RspProd)),
                    false => Ok(true),
                };
                let count = count.min(SLOTS);
                let expected = there.map(|_| {
                    let indices = (0..belief.known().min(count)).map(|n| belief.taken.wrapping_add(n));
                    indices.map(|index| response(&mut back, index)).collect::<Vec<_>>()
                });
                let taken = if each {
                    front.responses().map(|each| each.take(count as usize).collect())
                } else {
                    let mut out = vec![[0; 4]; count as usize];
                    front.pop_batch(&mut out).map(|count| out[..count as usize].to_vec())
                };
                assert_eq!(taken, expected);
                belief.taken = belief.taken.wrapping_add(expected.map_or(0, |taken| taken.len() as u32));
                there.map(drop)
            }
            FrontAct::Look => {
                let there = belief.look(back.get(Field::RspProd));
                assert_eq!(front.has_responses(), there);
                there.map(drop)
            }
            FrontAct::Arm(skip) => {
                let there = belief.judge(back.get(Field::RspProd));
                assert_eq!(front.arm_after(skip), there);
                let event = belief.taken.wrapping_add(skip).wrapping_add(1);
                assert_eq!(back.get(Field::RspEvent), event);
                there.map(drop)
            }
            FrontAct::Back(_) => Ok(()),
        };
        broken = result.err();
        assert_eq!(front.is_broken(), broken.is_some());
    }
}

/// Plays acts on a back, whose front began the indices at `start`: the same as of [`front()`].
///
/// # Panics
/// When it is not so.
pub fn back(start: u32, acts: impl IntoIterator<Item = BackAct>) {
    let shared = SharedPages::new(1);
    Front::<Net, _>::init_at(shared.clone(), start).expect("a page is enough");
    let mut back = Back::<Net, _>::attach_at(shared.clone(), start).expect("a page is enough");
    let mut raw = HostileBack::<Net, _>::new(shared).expect("a page is enough");
    let mut belief = Belief { taken: start, available: start, limit: SLOTS };
    let (mut pushed, mut published, mut broken) = (start, start, None);
    for act in acts {
        if let BackAct::Front(op) = act {
            raw.apply(op);
            continue;
        }
        if let Some(error) = broken {
            assert!(back.is_broken());
            assert_eq!(back.pop(), Err(error));
            assert_eq!(back.push(&[0; 4]), Err(error));
            assert_eq!(back.publish(), Err(error));
            assert_eq!(back.push_batch(&[[0; 4]; 3]), Err(error));
            assert_eq!(back.pop_batch(&mut [[0; 12]; 3]), Err(error));
            assert_eq!(back.has_requests(), Err(error));
            assert_eq!(back.arm(), Err(error));
            continue;
        }
        // A slot is free for a request again once its response is published.
        belief.limit = SLOTS - belief.taken.wrapping_sub(published);
        match act {
            BackAct::Requests(count, value) => {
                let room = SLOTS - raw.get(Field::ReqProd).wrapping_sub(published).min(SLOTS);
                raw.apply(BackOp::Fill { value });
                raw.advance(Field::ReqProd, room.min(count));
            }
            BackAct::Pop(times) => {
                for _ in 0..times {
                    let there = belief.look(raw.get(Field::ReqProd));
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
            BackAct::Respond(times) => {
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
            BackAct::Look => {
                let there = belief.look(raw.get(Field::ReqProd));
                assert_eq!(back.has_requests(), there);
                broken = there.err();
            }
            BackAct::Arm => {
                let there = belief.judge(raw.get(Field::ReqProd));
                assert_eq!(back.arm(), there);
                broken = there.err();
            }
            BackAct::Front(_) => {}
        }
    }
}

/// Plays acts on a front of any protocol, and the back's between any `every` accesses to memory: no more responses come than
/// there were requests, and broken means broken.
///
/// # Panics
/// When it is not so.
pub fn meddled_front<P: Protocol>(
    pages: usize,
    start: u32,
    every: u32,
    request: &P::Request,
    acts: impl IntoIterator<Item = FrontAct>,
) {
    let shared = SharedPages::new(pages);
    let mut back = HostileBack::<P, _>::new(shared.clone()).expect("pages enough");
    let slots = back.slots();
    let (meddled, waiting) = meddle(shared, every, move |op| back.apply(op));
    let mut front = Front::<P, _>::init_at(meddled, start).expect("pages enough");
    let (mut published, mut responses, mut broken) = (0_u32, 0_u32, None);
    for act in acts {
        let result = match act {
            FrontAct::Push(_, times) => (0..times).try_for_each(|_| match front.push(request) {
                Err(RingError::Full) => Ok(()),
                pushed => pushed.map(drop),
            }),
            FrontAct::Publish => {
                let before = front.in_flight();
                front.publish().map(|_| published += front.in_flight() - before)
            }
            FrontAct::Pop(times) | FrontAct::PopBatch(times) => (0..times.max(1))
                .try_for_each(|_| front.pop().map(|response| responses += u32::from(response.is_some()))),
            FrontAct::PopEach(times) => {
                front.responses().map(|each| responses += each.take(times as usize).count() as u32)
            }
            FrontAct::Look => front.has_responses().map(drop),
            FrontAct::Arm(skip) => front.arm_after(skip).map(drop),
            FrontAct::Back(op) => {
                waiting.borrow_mut().push(op);
                continue;
            }
        };
        assert!(front.in_flight() <= slots && responses <= published, "more responses than requests");
        if let Err(error) = result {
            assert!(matches!(error, RingError::Broken(_)));
            assert!(front.is_broken() && *broken.get_or_insert(error) == error, "broken means broken");
        } else if !matches!(act, FrontAct::Push(..)) {
            assert!(broken.is_none(), "works again");
        }
    }
}
