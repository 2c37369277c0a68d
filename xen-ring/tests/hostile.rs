//! A slot ring whose other end does anything: no panic, no response too many, and broken means broken.
#![cfg(feature = "mock")]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use xen_ring::mock::{BackOp, Field, HostileBack, Meddled, SharedPages};
use xen_ring::{Back, Backing, Front, Protocol, RingError, Violation};

struct Net;
impl Protocol for Net {
    type Request = [u8; 12];
    type Response = [u8; 4];
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Push(u8),
    Publish,
    Pop,
    PopBatch(u8),
    PopEach(u8),
    Look,
    Arm(u32),
    Back(BackOp),
}

fn numbers() -> impl Strategy<Value = u32> {
    prop_oneof![0..4_u32, (1..4_u32).prop_map(u32::wrapping_neg), 250..260_u32, any::<u32>()]
}

fn back_ops() -> impl Strategy<Value = BackOp> {
    let field = || prop::sample::select(&Field::ALL[..]);
    prop_oneof![
        4 => (0..9_u32).prop_map(|count| BackOp::Answer { count }),
        1 => (field(), numbers()).prop_map(|(field, value)| BackOp::Set { field, value }),
        1 => (field(), numbers()).prop_map(|(field, by)| BackOp::Advance { field, by }),
        1 => (numbers(), any::<u16>(), any::<[u8; 8]>())
            .prop_map(|(index, offset, bytes)| BackOp::Slot { index, offset: offset % 14, bytes }),
        1 => any::<u8>().prop_map(|value| BackOp::Fill { value }),
    ]
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        2 => any::<u8>().prop_map(Act::Push),
        2 => Just(Act::Publish),
        3 => Just(Act::Pop),
        2 => (0..20_u8).prop_map(Act::PopBatch),
        2 => (0..20_u8).prop_map(Act::PopEach),
        1 => Just(Act::Look),
        1 => numbers().prop_map(Act::Arm),
        3 => back_ops().prop_map(Act::Back),
    ];
    prop::collection::vec(act, 1..200)
}

fn starts() -> impl Strategy<Value = u32> {
    prop_oneof![(0..50_u32).prop_map(|n| u32::MAX - n), Just(0), any::<u32>()]
}

/// What a ring may believe of its peer's index.
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

fn stays_broken(front: &mut Front<Net, SharedPages>, error: RingError) -> Result<(), TestCaseError> {
    prop_assert!(front.is_broken());
    prop_assert_eq!(front.free(), 0);
    prop_assert_eq!(front.push(&[0; 12]), Err(error));
    prop_assert_eq!(front.publish(), Err(error));
    prop_assert_eq!(front.pop(), Err(error));
    prop_assert_eq!(front.push_batch(&[[0; 12]; 3]), Err(error));
    prop_assert_eq!(front.pop_batch(&mut [[0; 4]; 3]), Err(error));
    prop_assert_eq!(front.has_responses(), Err(error));
    prop_assert_eq!(front.arm(), Err(error));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_front_believes_what_is_possible_and_nothing_else(start in starts(), acts in acts()) {
        let shared = SharedPages::new(1);
        let mut front = Front::<Net, _>::init_at(shared.clone(), start).unwrap();
        let mut back = HostileBack::<Net, _>::new(shared.clone()).unwrap();
        let mut belief = Belief { taken: start, available: start, limit: 0 };
        let (mut pushed, mut published, mut broken) = (start, start, None);
        for act in acts {
            if let Some(error) = broken {
                if let Act::Back(op) = act {
                    back.apply(op);
                }
                let before = shared.snapshot();
                stays_broken(&mut front, error)?;
                prop_assert_eq!(shared.snapshot(), before, "a broken ring is left alone");
                continue;
            }
            belief.limit = published.wrapping_sub(belief.taken);
            let result = match act {
                Act::Push(value) => {
                    let expected = match pushed.wrapping_sub(belief.taken) {
                        256 => Err(RingError::Full),
                        _ => Ok(pushed),
                    };
                    prop_assert_eq!(front.push(&[value; 12]), expected);
                    pushed = pushed.wrapping_add(u32::from(expected.is_ok()));
                    Ok(())
                }
                Act::Publish => {
                    let event = back.get(Field::ReqEvent);
                    let count = pushed.wrapping_sub(published);
                    let notify = (1..=count).any(|n| published.wrapping_add(n) == event);
                    prop_assert_eq!(front.publish(), Ok(notify));
                    published = pushed;
                    // What we wrote is right again, whatever the peer had put there.
                    prop_assert!(count == 0 || back.get(Field::ReqProd) == published);
                    Ok(())
                }
                Act::Pop | Act::Look => {
                    let known = belief.available != belief.taken;
                    let there = if known { Ok(true) } else { belief.judge(back.get(Field::RspProd)) };
                    if matches!(act, Act::Look) {
                        prop_assert_eq!(front.has_responses(), there);
                    } else {
                        let slot: [u8; 12] = back.request(belief.taken);
                        let first = slot[..4].try_into().unwrap();
                        prop_assert_eq!(front.pop(), there.map(|there| there.then_some(first)));
                        belief.taken = belief.taken.wrapping_add(u32::from(there == Ok(true)));
                    }
                    there.map(drop)
                }
                Act::PopBatch(count) | Act::PopEach(count) => {
                    let known = belief.available.wrapping_sub(belief.taken);
                    let each = matches!(act, Act::PopEach(_));
                    let there = match each || known < u32::from(count) {
                        true => belief.judge(back.get(Field::RspProd)),
                        false => Ok(true),
                    };
                    let expected = there.map(|_| {
                        let available = belief.available.wrapping_sub(belief.taken);
                        let first = |n| {
                            let slot: [u8; 12] = back.request(belief.taken.wrapping_add(n));
                            slot[..4].try_into().unwrap()
                        };
                        (0..available.min(count.into())).map(first).collect::<Vec<[u8; 4]>>()
                    });
                    let taken = if each {
                        front.responses().map(|each| each.take(count.into()).collect())
                    } else {
                        let mut out = vec![[0; 4]; count.into()];
                        front.pop_batch(&mut out).map(|count| out[..count as usize].to_vec())
                    };
                    prop_assert_eq!(&taken, &expected);
                    let taken = taken.map_or(0, |taken| taken.len() as u32);
                    belief.taken = belief.taken.wrapping_add(taken);
                    there.map(drop)
                }
                Act::Arm(skip) => {
                    let there = belief.judge(back.get(Field::RspProd));
                    prop_assert_eq!(front.arm_after(skip), there);
                    prop_assert_eq!(
                        back.get(Field::RspEvent), belief.taken.wrapping_add(skip).wrapping_add(1)
                    );
                    there.map(drop)
                }
                Act::Back(op) => {
                    back.apply(op);
                    Ok(())
                }
            };
            broken = result.err();
            prop_assert_eq!(front.is_broken(), broken.is_some());
        }
    }

    #[test]
    fn a_back_believes_what_is_possible_and_nothing_else(
        start in starts(),
        acts in prop::collection::vec((0..4_u8, numbers()), 1..200),
    ) {
        let shared = SharedPages::new(1);
        Front::<Net, _>::init_at(shared.clone(), start).unwrap();
        let mut back = Back::<Net, _>::attach_at(shared.clone(), start).unwrap();
        let mut raw = HostileBack::<Net, _>::new(shared).unwrap();
        let mut belief = Belief { taken: start, available: start, limit: 256 };
        let (mut pushed, mut published, mut broken) = (start, start, None);
        for (act, number) in acts {
            if let Some(error) = broken {
                prop_assert!(back.is_broken());
                raw.set(Field::ReqProd, number);
                prop_assert_eq!(back.pop(), Err(error));
                prop_assert_eq!(back.push(&[0; 4]), Err(error));
                prop_assert_eq!(back.publish(), Err(error));
                prop_assert_eq!(back.push_batch(&[[0; 4]; 3]), Err(error));
                prop_assert_eq!(back.pop_batch(&mut [[0; 12]; 3]), Err(error));
                prop_assert_eq!(back.has_requests(), Err(error));
                prop_assert_eq!(back.arm(), Err(error));
                continue;
            }
            // A slot is free for a request again once its response is published.
            belief.limit = 256 - belief.taken.wrapping_sub(published);
            match act {
                0 if number % 16 == 0 => raw.advance(Field::ReqProd, number),
                0 => {
                    // Some more, as far as there is room: a front that keeps to the rules.
                    let room = 256 - raw.get(Field::ReqProd).wrapping_sub(published).min(256);
                    raw.apply(BackOp::Fill { value: number as u8 });
                    raw.advance(Field::ReqProd, room.min(number % 16));
                }
                1 => {
                    let known = belief.available != belief.taken;
                    let there = if known { Ok(true) } else { belief.judge(raw.get(Field::ReqProd)) };
                    let slot = raw.request(belief.taken);
                    prop_assert_eq!(back.pop(), there.map(|there| there.then_some(slot)));
                    belief.taken = belief.taken.wrapping_add(u32::from(there == Ok(true)));
                    broken = there.err();
                }
                2 => {
                    for _ in 0..number % 16 {
                        prop_assert_eq!(back.unanswered(), belief.taken.wrapping_sub(pushed));
                        if pushed == belief.taken {
                            prop_assert_eq!(back.push(&[0; 4]), Err(RingError::Full));
                            break;
                        }
                        prop_assert_eq!(back.push(&[1; 4]), Ok(()));
                        pushed = pushed.wrapping_add(1);
                    }
                    back.publish().unwrap();
                    published = pushed;
                }
                _ => {
                    let there = belief.judge(raw.get(Field::ReqProd));
                    prop_assert_eq!(back.arm(), there);
                    broken = there.err();
                }
            }
        }
    }

    #[test]
    fn the_far_side_cannot_write_out_of_its_pages(ops in prop::collection::vec(back_ops(), 1..50)) {
        // The ring is in the middle page of three.
        let mut shared = SharedPages::new(3);
        for op in ops {
            let page = shared.mem().slice(4096, 4096).unwrap();
            HostileBack::<Net, _>::new(page).unwrap().apply(op);
        }
        let bytes = shared.snapshot();
        prop_assert!(bytes[..4096].iter().chain(&bytes[8192..]).all(|&byte| byte == 0));
    }
}

#[test]
fn every_index_that_cannot_be_breaks_the_ring() {
    for start in [0, 1000, u32::MAX - 2, u32::MAX] {
        // Five requests shown, two answered and taken: 0 to 3 more are possible.
        for index in (0..600).chain([u32::MAX / 2, u32::MAX - 1]).chain((1..600).map(u32::wrapping_neg)) {
            let shared = SharedPages::new(1);
            let mut front = Front::<Net, _>::init_at(shared.clone(), start).unwrap();
            let mut back = HostileBack::<Net, _>::new(shared).unwrap();
            for _ in 0..5 {
                front.push(&[0; 12]).unwrap();
            }
            front.publish().unwrap();
            back.answer(2);
            front.pop().unwrap().unwrap();
            front.pop().unwrap().unwrap();
            back.advance(Field::RspProd, index);
            let result = front.pop();
            match index {
                0 => assert_eq!(result, Ok(None)),
                1..=3 => assert_eq!(result, Ok(Some([0; 4]))),
                _ => {
                    let ours = start.wrapping_add(2);
                    let violation = Violation { index: ours.wrapping_add(index), ours, limit: 3 };
                    assert_eq!(result, Err(RingError::Broken(violation)));
                }
            }
        }
    }
}

#[test]
fn an_index_that_goes_back_breaks_the_ring_when_it_is_seen() {
    let shared = SharedPages::new(1);
    let mut front = Front::<Net, _>::init(shared.clone()).unwrap();
    let mut back = HostileBack::<Net, _>::new(shared).unwrap();
    for _ in 0..5 {
        front.push(&[0; 12]).unwrap();
    }
    front.publish().unwrap();
    back.answer(4);
    assert_eq!(front.has_responses(), Ok(true));
    back.set(Field::RspProd, 2);
    // What was checked stays good; it is not read again.
    assert_eq!(front.pop(), Ok(Some([0; 4])));
    let error = Err(RingError::Broken(Violation { index: 2, ours: 1, limit: 4 }));
    assert_eq!(front.arm(), error);
    assert_eq!(front.pop().map(drop), error.map(drop));
}

#[test]
fn the_index_is_read_once_for_all_that_it_allows_and_a_slot_is_copied_at_once() {
    let shared = SharedPages::new(1);
    let mut back = HostileBack::<Net, _>::new(shared.clone()).unwrap();
    let accesses = Rc::new(Cell::new(0));
    let (count, mut hostile) = (accesses.clone(), HostileBack::<Net, _>::new(shared.clone()).unwrap());
    let armed = Rc::new(Cell::new(false));
    let act = armed.clone();
    let meddled = Meddled::new(shared, move |_| {
        count.set(count.get() + 1);
        if act.get() {
            // Between any two accesses all slots change, and after the first the index is nonsense.
            hostile.apply(BackOp::Fill { value: count.get() });
            if count.get() > 1 {
                hostile.set(Field::RspProd, 0x8000_0000);
            }
        }
    });
    let mut front = Front::<Net, _>::init(meddled).unwrap();
    for i in 0..5 {
        front.push(&[i; 12]).unwrap();
    }
    front.publish().unwrap();
    back.answer(5);
    armed.set(true);
    accesses.set(0);
    // The first access is of the index, then one for each slot.
    for n in 2..=6 {
        assert_eq!(front.pop(), Ok(Some([n; 4])));
    }
    assert_eq!(accesses.get(), 6);
    armed.set(false);
    for i in 0..5 {
        front.push(&[i; 12]).unwrap();
    }
    front.publish().unwrap();
    back.set(Field::RspProd, 5);
    back.answer(5);
    armed.set(true);
    accesses.set(0);
    // And one by one of those that are there: the index, and the memory once for all of them.
    assert_eq!(front.responses().unwrap().collect::<Vec<_>>(), [[2; 4]; 5]);
    assert_eq!(accesses.get(), 2);
    assert!(front.pop().is_err());
    assert!(!format!("{:?}", front.into_inner()).is_empty());
}

#[test]
fn memory_that_is_lent_differently_each_time_is_an_error_and_no_more() {
    /// Lends less and less.
    struct Shrinking(SharedPages, usize);
    impl Backing for Shrinking {
        fn mem(&mut self) -> xen_ring::SharedMem<'_> {
            self.1 = self.1.saturating_sub(1000);
            self.0.mem().slice(0, self.1).unwrap()
        }
    }
    let mut front = Front::<Net, _>::init(Shrinking(SharedPages::new(1), 5096)).unwrap();
    let mut refused = 0;
    for _ in 0..256 {
        match front.push(&[1; 12]) {
            Err(RingError::TooSmall(_)) => refused += 1,
            other => assert!(other.is_ok()),
        }
    }
    assert!(refused > 200);
    assert!(matches!(front.publish(), Err(RingError::TooSmall(_))));
    assert!(matches!(front.pop(), Err(RingError::TooSmall(_))));
    assert!(matches!(front.responses().map(drop), Err(RingError::TooSmall(_))));
    assert!(!front.is_broken(), "that was not the peer");
}

#[test]
fn memory_that_is_not_as_large_as_it_says_is_an_error_and_no_more() {
    struct Exaggerated(SharedPages, usize);
    impl Backing for Exaggerated {
        fn mem(&mut self) -> xen_ring::SharedMem<'_> {
            self.0.mem()
        }
        fn fixed_len(&self) -> Option<usize> {
            Some(self.1)
        }
    }
    // Slots for a megabyte, of which there is a page: one after another is tried, and beyond the page refused.
    let mut front = Front::<Net, _>::init(Exaggerated(SharedPages::new(1), 1 << 20)).unwrap();
    let mut pushed = 0;
    while front.push(&[1; 12]).is_ok() {
        pushed += 1;
    }
    assert!((255..=336).contains(&pushed), "{pushed}");
    // None at all is not believed.
    let mut front = Front::<Net, _>::init(Exaggerated(SharedPages::new(1), 64)).unwrap();
    assert_eq!((0..300).filter(|_| front.push(&[1; 12]).is_ok()).count(), 256);
}

#[test]
fn a_back_whose_front_broke_the_protocol_has_nothing_to_answer() {
    let shared = SharedPages::new(1);
    let mut front = Front::<Net, _>::init(shared.clone()).unwrap();
    let mut back = Back::<Net, _>::attach(shared.clone()).unwrap();
    front.push(&[1; 12]).unwrap();
    front.publish().unwrap();
    assert_eq!((back.pop(), back.unanswered()), (Ok(Some([1; 12])), 1));
    shared.clone().mem().store_u32(xen_ring::REQ_PROD, 5000, Ordering::Release).unwrap();
    let broken = RingError::Broken(Violation { index: 5000, ours: 1, limit: 255 });
    assert_eq!(back.pop(), Err(broken));
    assert_eq!(back.push(&[2; 4]), Err(broken));
    assert_eq!((back.unanswered(), back.push_batch(&[[2; 4]])), (0, Err(broken)));
    assert_eq!((back.pop(), back.publish(), back.arm()), (Err(broken), Err(broken), Err(broken)));
}
