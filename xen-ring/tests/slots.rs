//! Both ends of a slot ring against plain queues.
#![cfg(feature = "mock")]

use std::collections::VecDeque;

use proptest::prelude::*;
use xen_ring::mock::{Field, HostileBack, SharedPages};
use xen_ring::{Back, Backing, Front, Protocol, RingError, SharedMem};

struct Of<const REQUEST: usize, const RESPONSE: usize>;

impl<const REQUEST: usize, const RESPONSE: usize> Protocol for Of<REQUEST, RESPONSE> {
    type Request = [u8; REQUEST];
    type Response = [u8; RESPONSE];
}

#[derive(Clone, Copy, Debug)]
enum Act {
    /// Push so many requests, or as many as fit.
    Push(u16),
    /// Take back so many.
    Unpush(u16),
    Publish,
    Pop(u16),
    Arm(u8),
    BackPop(u16),
    BackPush(u16),
    BackPublish,
    BackArm,
    PushBatch(u16),
    PopBatch(u16),
    /// Look once, and take so many responses of those that are there.
    PopEach(u16),
    BackPopBatch(u16),
    BackPushBatch(u16),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let few = || prop_oneof![4 => 1..4_u16, 1 => 0..600_u16];
    let act = prop_oneof![
        few().prop_map(Act::Push),
        few().prop_map(Act::Unpush),
        Just(Act::Publish),
        few().prop_map(Act::Pop),
        prop_oneof![3 => Just(0), 1 => 0..5_u8].prop_map(Act::Arm),
        few().prop_map(Act::BackPop),
        few().prop_map(Act::BackPush),
        Just(Act::BackPublish),
        Just(Act::BackArm),
        few().prop_map(Act::PushBatch),
        few().prop_map(Act::PopBatch),
        few().prop_map(Act::PopEach),
        few().prop_map(Act::BackPopBatch),
        few().prop_map(Act::BackPushBatch),
    ];
    prop::collection::vec(act, 1..120)
}

/// Any index, and more often one before which the numbers end.
fn starts() -> impl Strategy<Value = u32> {
    prop_oneof![(0..300_u32).prop_map(|n| u32::MAX - n), Just(0), any::<u32>()]
}

/// One direction: what is written, what is shown, and of which entry the other side wants to hear.
struct Queue<const N: usize> {
    hidden: VecDeque<[u8; N]>,
    shown: VecDeque<[u8; N]>,
    /// Entries written, shown and taken so far, as `u64` to have no end.
    published: u64,
    taken: u64,
    /// The entry whose publishing must be notified.
    event: u64,
    /// Whether the consumer sleeps until then.
    asleep: bool,
}

impl<const N: usize> Queue<N> {
    fn new() -> Self {
        let (hidden, shown) = Default::default();
        Self { hidden, shown, published: 0, taken: 0, event: 1, asleep: false }
    }

    /// Shows what is hidden; returns whether to notify, found out entry by entry.
    fn publish(&mut self) -> bool {
        let mut notify = false;
        while let Some(entry) = self.hidden.pop_front() {
            self.shown.push_back(entry);
            self.published += 1;
            // Four billion entries later the same number comes again.
            notify |= self.published as u32 == self.event as u32;
        }
        if notify {
            self.asleep = false;
        }
        // Who sleeps for the next entry has been woken if there is one.
        assert!(!(self.asleep && self.published >= self.event), "a wake-up was lost");
        notify
    }

    fn take(&mut self) -> Option<[u8; N]> {
        let entry = self.shown.pop_front();
        self.taken += u64::from(entry.is_some());
        entry
    }

    fn take_batch(&mut self, count: u16) -> Vec<[u8; N]> {
        (0..count).map_while(|_| self.take()).collect()
    }

    /// Asks for the entry after `skip` more; returns whether there is one already.
    fn arm(&mut self, skip: u64) -> bool {
        self.event = self.taken + skip + 1;
        self.asleep = self.shown.is_empty();
        !self.shown.is_empty()
    }
}

fn check<const Q: usize, const S: usize>(
    pages: usize,
    start: u32,
    acts: &[Act],
) -> Result<(), TestCaseError> {
    let shared = SharedPages::new(pages);
    check_in::<Q, S>(shared.clone(), shared.clone(), start, acts)?;
    if pages == 1 {
        check_in::<Q, S>(OnePage(shared.clone()), shared, start, acts)?;
    }
    Ok(())
}

/// A page, which says so.
#[derive(Clone)]
struct OnePage(SharedPages);

impl Backing for OnePage {
    fn mem(&mut self) -> SharedMem<'_> {
        self.0.mem()
    }

    fn fixed_len(&self) -> Option<usize> {
        Some(4096)
    }
}

fn check_in<const Q: usize, const S: usize>(
    memory: impl Backing + Clone,
    shared: SharedPages,
    start: u32,
    acts: &[Act],
) -> Result<(), TestCaseError> {
    let mut front = Front::<Of<Q, S>, _>::init_at(memory.clone(), start).unwrap();
    let mut back = Back::<Of<Q, S>, _>::attach_at(memory, start).unwrap();
    let mut raw = HostileBack::<Of<Q, S>, _>::new(shared).unwrap();
    let slots = front.slots();
    prop_assert_eq!(back.slots(), slots);
    let (mut requests, mut responses) = (Queue::<Q>::new(), Queue::<S>::new());
    let mut pushed: u64 = 0;
    let mut answered: u64 = 0;
    let mut seed = 1_u64;
    for &act in acts {
        match act {
            Act::Push(count) => {
                for _ in 0..count {
                    let request = bytes(&mut seed);
                    let free = u64::from(slots) - (pushed - responses.taken);
                    prop_assert_eq!(u64::from(front.free()), free);
                    if free == 0 {
                        prop_assert_eq!(front.push(&request), Err(RingError::Full));
                        break;
                    }
                    let index = start.wrapping_add(pushed as u32);
                    prop_assert_eq!(front.push(&request), Ok(index));
                    prop_assert_eq!(raw.request(index), request);
                    requests.hidden.push_back(request);
                    pushed += 1;
                }
                prop_assert_eq!(front.has_unpublished(), !requests.hidden.is_empty());
            }
            Act::Unpush(count) => {
                for _ in 0..count {
                    let any = requests.hidden.pop_back().is_some();
                    prop_assert_eq!(front.unpush(), any);
                    pushed -= u64::from(any);
                }
            }
            Act::Publish => {
                prop_assert_eq!(front.publish(), Ok(requests.publish()));
                prop_assert!(!front.has_unpublished());
            }
            Act::Pop(count) => {
                for _ in 0..count {
                    prop_assert_eq!(front.has_responses(), Ok(!responses.shown.is_empty()));
                    prop_assert_eq!(front.response_index(), start.wrapping_add(responses.taken as u32));
                    let expected = responses.take();
                    if count % 2 == 0 {
                        let mut out = [0xee; S];
                        prop_assert_eq!(front.pop_into(&mut out), Ok(expected.is_some()));
                        prop_assert_eq!(out, expected.unwrap_or([0xee; S]));
                    } else {
                        prop_assert_eq!(front.pop(), Ok(expected));
                    }
                    if expected.is_none() {
                        break;
                    }
                }
            }
            Act::Arm(0) => prop_assert_eq!(front.arm(), Ok(responses.arm(0))),
            Act::Arm(skip) => prop_assert_eq!(front.arm_after(skip.into()), Ok(responses.arm(skip.into()))),
            Act::BackPop(count) => {
                for _ in 0..count {
                    let expected = requests.take();
                    if count % 2 == 0 {
                        let mut out = [0xee; Q];
                        prop_assert_eq!(back.pop_into(&mut out), Ok(expected.is_some()));
                        prop_assert_eq!(out, expected.unwrap_or([0xee; Q]));
                    } else {
                        prop_assert_eq!(back.pop(), Ok(expected));
                    }
                    if expected.is_none() {
                        break;
                    }
                }
            }
            Act::BackPush(count) => {
                for _ in 0..count {
                    let response = bytes(&mut seed);
                    prop_assert_eq!(u64::from(back.unanswered()), requests.taken - answered);
                    if requests.taken == answered {
                        prop_assert_eq!(back.push(&response), Err(RingError::Full));
                        break;
                    }
                    prop_assert_eq!(back.push(&response), Ok(()));
                    responses.hidden.push_back(response);
                    answered += 1;
                }
            }
            Act::PushBatch(count) => {
                let batch: Vec<_> = (0..count).map(|_| bytes(&mut seed)).collect();
                let fit = batch.len().min(front.free() as usize);
                prop_assert_eq!(front.push_batch(&batch), Ok(fit as u32));
                for (i, request) in (pushed..).zip(&batch[..fit]) {
                    prop_assert_eq!(raw.request(start.wrapping_add(i as u32)), *request);
                }
                requests.hidden.extend(&batch[..fit]);
                pushed += fit as u64;
            }
            Act::PopBatch(count) => {
                let (mut out, expected) = (vec![[0xee; S]; count.into()], responses.take_batch(count));
                prop_assert_eq!(front.pop_batch(&mut out), Ok(expected.len() as u32));
                prop_assert_eq!(&out[..expected.len()], &expected[..]);
                prop_assert!(out[expected.len()..].iter().flatten().all(|&byte| byte == 0xee));
            }
            Act::PopEach(count) => {
                let there = responses.shown.len();
                let expected = responses.take_batch(count);
                let mut each = front.responses().unwrap();
                prop_assert_eq!(each.len(), there);
                prop_assert_eq!(each.by_ref().take(count.into()).collect::<Vec<_>>(), &expected[..]);
                prop_assert_eq!(each.size_hint().1, Some(there - expected.len()));
                prop_assert_ne!(format!("{each:?}"), "");
                drop(each);
                prop_assert_eq!(front.response_index(), start.wrapping_add(responses.taken as u32));
            }
            Act::BackPopBatch(count) => {
                let there = !requests.shown.is_empty();
                let (mut out, expected) = (vec![[0xee; Q]; count.into()], requests.take_batch(count));
                prop_assert_eq!(back.has_requests(), Ok(there));
                prop_assert_eq!(back.pop_batch(&mut out), Ok(expected.len() as u32));
                prop_assert_eq!(&out[..expected.len()], &expected[..]);
                prop_assert!(out[expected.len()..].iter().flatten().all(|&byte| byte == 0xee));
            }
            Act::BackPushBatch(count) => {
                let batch: Vec<_> = (0..count).map(|_| bytes(&mut seed)).collect();
                let due = batch.len().min(back.unanswered() as usize);
                prop_assert_eq!(back.push_batch(&batch), Ok(due as u32));
                responses.hidden.extend(&batch[..due]);
                answered += due as u64;
            }
            Act::BackPublish => prop_assert_eq!(back.publish(), Ok(responses.publish())),
            Act::BackArm => prop_assert_eq!(back.arm(), Ok(requests.arm(0))),
        }
        prop_assert_eq!(u64::from(front.in_flight()), requests.published - responses.taken);
        // What the other domain sees.
        let words = [requests.published, requests.event, responses.published, responses.event];
        for (field, word) in Field::ALL.into_iter().zip(words) {
            prop_assert_eq!(raw.get(field), start.wrapping_add(word as u32), "{:?}", field);
        }
    }
    prop_assert!(!front.is_broken() && !back.is_broken());
    Ok(())
}

/// Bytes that no other entry has.
fn bytes<const N: usize>(seed: &mut u64) -> [u8; N] {
    std::array::from_fn(|_| {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*seed >> 56) as u8
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn netif_requests(order in 0..3_u32, start in starts(), acts in acts()) {
        check::<12, 4>(1 << order, start, &acts)?;
    }

    #[test]
    fn netif_buffers(start in starts(), acts in acts()) {
        check::<8, 8>(1, start, &acts)?;
    }

    #[test]
    fn blkif(order in 0..5_u32, start in starts(), acts in acts()) {
        check::<112, 16>(1 << order, start, &acts)?;
    }

    #[test]
    fn responses_larger_than_requests_and_of_odd_size(start in starts(), acts in acts()) {
        check::<3, 37>(1, start, &acts)?;
    }

    #[test]
    fn records_of_many_slots_worth(order in 0..4_u32, start in starts(), acts in acts()) {
        check::<1000, 8>(1 << order, start, &acts)?;
    }

    #[test]
    fn a_ring_of_one_slot(start in starts(), acts in acts()) {
        check::<2048, 2>(1, start, &acts)?;
    }
}

#[test]
fn a_ring_goes_round_the_end_of_the_numbers_full() {
    let shared = SharedPages::new(1);
    let start = u32::MAX - 100;
    let mut front = Front::<Of<12, 4>, _>::init_at(shared.clone(), start).unwrap();
    let mut back = Back::<Of<12, 4>, _>::attach_at(shared, start).unwrap();
    for round in 0..3_u8 {
        for i in 0..=255 {
            front.push(&[i ^ round; 12]).unwrap();
        }
        assert_eq!(front.push(&[0; 12]), Err(RingError::Full));
        assert_eq!((front.free(), front.publish()), (0, Ok(true)));
        for i in 0..=255 {
            assert_eq!(back.pop(), Ok(Some([i ^ round; 12])));
            back.push(&[i ^ round; 4]).unwrap();
        }
        assert_eq!((back.pop(), back.publish()), (Ok(None), Ok(true)));
        assert_eq!(back.arm(), Ok(false));
        for i in 0..=255 {
            assert_eq!(front.pop(), Ok(Some([i ^ round; 4])));
        }
        assert_eq!((front.pop(), front.arm()), (Ok(None), Ok(false)));
    }
}

#[test]
fn a_back_can_join_a_ring_in_use() {
    let shared = SharedPages::new(1);
    let mut front = Front::<Of<8, 8>, _>::init_at(shared.clone(), 77).unwrap();
    front.push(&[1; 8]).unwrap();
    front.push(&[2; 8]).unwrap();
    front.publish().unwrap();
    // One request was answered before, by somebody else.
    let mut before = Back::<Of<8, 8>, _>::attach_at(shared.clone(), 77).unwrap();
    before.pop().unwrap().unwrap();
    before.push(&[9; 8]).unwrap();
    before.publish().unwrap();
    drop(before.into_inner());
    let mut back = Back::<Of<8, 8>, _>::attach_at(shared, 78).unwrap();
    assert_eq!(back.pop(), Ok(Some([2; 8])));
    back.push(&[8; 8]).unwrap();
    back.publish().unwrap();
    assert_eq!((front.pop(), front.pop(), front.pop()), (Ok(Some([9; 8])), Ok(Some([8; 8])), Ok(None)));
}

#[test]
fn the_front_zeroes_what_was_there_before() {
    let mut shared = SharedPages::new(2);
    shared.mem().fill(0, 8192, 0xff).unwrap();
    let front = Front::<Of<8, 8>, _>::init(shared.clone()).unwrap();
    let bytes = front.into_inner().snapshot();
    assert!(bytes[16..].iter().all(|&byte| byte == 0), "nothing leaks to the peer");
    assert_eq!(bytes[..16], *b"\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0");
}
