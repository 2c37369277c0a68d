//! A slot ring whose other end does anything: no panic, no response too many, and broken means broken.
#![cfg(feature = "mock")]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use xen_ring::mock::model::{self, BackAct, FrontAct};
use xen_ring::mock::{BackOp, Field, HostileBack, Meddled, SharedPages};
use xen_ring::{Back, Backing, Front, Protocol, RingError, Violation};

struct Net;
impl Protocol for Net {
    type Request = [u8; 12];
    type Response = [u8; 4];
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

fn acts() -> impl Strategy<Value = Vec<FrontAct>> {
    let act = prop_oneof![
        2 => (any::<u8>(), 1..4_u32).prop_map(|(value, times)| FrontAct::Push(value, times)),
        2 => Just(FrontAct::Publish),
        3 => (1..4_u32).prop_map(FrontAct::Pop),
        2 => (0..20_u32).prop_map(FrontAct::PopBatch),
        2 => (0..20_u32).prop_map(FrontAct::PopEach),
        1 => Just(FrontAct::Look),
        1 => numbers().prop_map(FrontAct::Arm),
        3 => back_ops().prop_map(FrontAct::Back),
    ];
    prop::collection::vec(act, 1..200)
}

fn back_acts() -> impl Strategy<Value = Vec<BackAct>> {
    let act = prop_oneof![
        2 => (0..16_u32, any::<u8>()).prop_map(|(count, value)| BackAct::Requests(count, value)),
        2 => (1..4_u32).prop_map(BackAct::Pop),
        2 => (0..16_u32).prop_map(BackAct::Respond),
        2 => Just(BackAct::Publish),
        1 => prop::sample::select(&[BackAct::Look, BackAct::Arm][..]),
        1 => back_ops().prop_map(BackAct::Front),
    ];
    prop::collection::vec(act, 1..200)
}

fn starts() -> impl Strategy<Value = u32> {
    prop_oneof![(0..50_u32).prop_map(|n| u32::MAX - n), Just(0), any::<u32>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_front_believes_what_is_possible_and_nothing_else(start in starts(), acts in acts()) {
        model::front(start, acts);
    }

    #[test]
    fn a_back_believes_what_is_possible_and_nothing_else(start in starts(), acts in back_acts()) {
        model::back(start, acts);
    }

    #[test]
    fn a_back_that_acts_between_two_accesses_breaks_its_ring_and_no_more(
        start in starts(),
        every in 1..5_u32,
        acts in acts(),
    ) {
        model::meddled_front::<Net>(1, start, every, &[7; 12], acts);
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
                    let violation = Violation::new(ours.wrapping_add(index), ours, 3);
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
    let error = Err(RingError::Broken(Violation::new(2, 1, 4)));
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
    let broken = RingError::Broken(Violation::new(5000, 1, 255));
    assert_eq!(back.pop(), Err(broken));
    assert_eq!(back.push(&[2; 4]), Err(broken));
    assert_eq!((back.unanswered(), back.push_batch(&[[2; 4]])), (0, Err(broken)));
    assert_eq!((back.pop(), back.publish(), back.arm()), (Err(broken), Err(broken), Err(broken)));
}
