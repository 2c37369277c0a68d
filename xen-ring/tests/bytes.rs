//! Both ends of a page with two byte streams against plain queues, and one end against a peer that does anything.
#![cfg(feature = "mock")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use proptest::prelude::*;
use xen_ring::mock::model::{StreamAct, meddled_streams, streams};
use xen_ring::mock::{Cursor, HostilePeer, Meddled, PeerOp, SharedPages};
use xen_ring::{Backing, ByteRing, ConsoleLayout, Reversed, RingError, StreamLayout, XenstoreLayout};

#[derive(Clone, Copy, Debug)]
enum Act {
    Write(u16),
    Read(u16),
    PeerWrite(u16),
    PeerRead(u16),
    LookBack(u16, u16),
}

fn lengths() -> impl Strategy<Value = u16> {
    prop_oneof![3 => 0..20_u16, 2 => 0..3000_u16, 1 => prop::sample::select(&[1023, 1024, 1025, 2047, 2048, 2049][..])]
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        lengths().prop_map(Act::Write),
        lengths().prop_map(Act::Read),
        lengths().prop_map(Act::PeerWrite),
        lengths().prop_map(Act::PeerRead),
        (lengths(), lengths()).prop_map(|(skip, len)| Act::LookBack(skip, len)),
    ];
    prop::collection::vec(act, 1..80)
}

fn starts() -> impl Strategy<Value = u32> {
    prop_oneof![(0..3000_u32).prop_map(|n| u32::MAX - n), Just(0), any::<u32>()]
}

/// Memory whose streams begin at these indices.
fn started<L: StreamLayout>(out: u32, input: u32) -> SharedPages {
    let shared = SharedPages::new(1);
    let mut raw = HostilePeer::<L, _>::new(shared.clone()).unwrap();
    for (cursor, value) in
        [(Cursor::OutCons, out), (Cursor::OutProd, out), (Cursor::InCons, input), (Cursor::InProd, input)]
    {
        raw.set(cursor, value);
    }
    shared
}

struct Stream {
    bytes: VecDeque<u8>,
    size: usize,
    next: u8,
}

impl Stream {
    fn new(size: u32) -> Self {
        Self { bytes: VecDeque::new(), size: size as usize, next: 0 }
    }

    fn write(
        &mut self,
        ring: &mut ByteRing<impl StreamLayout, SharedPages>,
        len: u16,
    ) -> Result<(), TestCaseError> {
        let data: Vec<u8> = (0..len).map(|i| self.next.wrapping_add((i % 251) as u8)).collect();
        let room = self.size - self.bytes.len();
        prop_assert_eq!(ring.writable(), Ok(room));
        prop_assert_eq!(ring.is_drained(), Ok(room == self.size));
        let count = data.len().min(room);
        prop_assert_eq!(ring.write(&data), Ok(count));
        self.bytes.extend(&data[..count]);
        self.next = self.next.wrapping_add(113);
        Ok(())
    }

    /// What the peer has not read can be copied again, from any place on.
    fn look_back(
        &self,
        ring: &mut ByteRing<impl StreamLayout, SharedPages>,
        skip: u16,
        len: u16,
    ) -> Result<(), TestCaseError> {
        let expected: Vec<u8> = self.bytes.iter().copied().skip(skip.into()).take(len.into()).collect();
        let mut out = vec![0xee; len.into()];
        prop_assert_eq!(ring.untaken(skip.into(), &mut out), Ok(expected.len()));
        prop_assert_eq!(&out[..expected.len()], &expected[..]);
        prop_assert!(out[expected.len()..].iter().all(|&byte| byte == 0xee));
        Ok(())
    }

    fn read(
        &mut self,
        ring: &mut ByteRing<impl StreamLayout, SharedPages>,
        len: u16,
    ) -> Result<(), TestCaseError> {
        prop_assert_eq!(ring.readable(), Ok(self.bytes.len()));
        let count = self.bytes.len().min(len.into());
        let mut out = vec![0xee; len.into()];
        prop_assert_eq!(ring.read(&mut out), Ok(count));
        let expected: Vec<u8> = self.bytes.drain(..count).collect();
        prop_assert_eq!(&out[..count], &expected[..]);
        prop_assert!(out[count..].iter().all(|&byte| byte == 0xee));
        Ok(())
    }
}

fn check<L: StreamLayout>(out: u32, input: u32, acts: &[Act]) -> Result<(), TestCaseError> {
    let shared = started::<L>(out, input);
    let mut ours = ByteRing::<L, _>::new(shared.clone()).unwrap();
    let mut theirs = ByteRing::<Reversed<L>, _>::new(shared).unwrap();
    let (mut there, mut back) = (Stream::new(L::OUT.1), Stream::new(L::IN.1));
    for &act in acts {
        match act {
            Act::Write(len) => there.write(&mut ours, len)?,
            Act::Read(len) => back.read(&mut ours, len)?,
            Act::PeerWrite(len) => back.write(&mut theirs, len)?,
            Act::PeerRead(len) => there.read(&mut theirs, len)?,
            Act::LookBack(skip, len) => there.look_back(&mut ours, skip, len)?,
        }
    }
    prop_assert!(!ours.is_broken() && !theirs.is_broken());
    Ok(())
}

fn peer_ops() -> impl Strategy<Value = PeerOp> {
    let cursor = || prop::sample::select(&Cursor::ALL[..]);
    let number = || {
        let near = prop_oneof![0..3_u32, 1020..1030_u32, 2046..2052_u32];
        prop_oneof![3 => near.clone(), 3 => near.prop_map(u32::wrapping_neg), 1 => any::<u32>()]
    };
    prop_oneof![
        4 => (0..300_u16, any::<u8>()).prop_map(|(count, value)| PeerOp::Send { count, value }),
        4 => (0..300_u16).prop_map(|count| PeerOp::Receive { count }),
        1 => (cursor(), number()).prop_map(|(cursor, value)| PeerOp::Set { cursor, value }),
        2 => (cursor(), number()).prop_map(|(cursor, by)| PeerOp::Advance { cursor, by }),
        1 => (any::<u16>(), any::<[u8; 8]>())
            .prop_map(|(offset, bytes)| PeerOp::Write { offset: offset % 4200, bytes }),
    ]
}

fn stream_acts() -> impl Strategy<Value = Vec<StreamAct>> {
    let len = || lengths().prop_map(usize::from);
    let act = prop_oneof![
        4 => peer_ops().prop_map(StreamAct::Peer),
        2 => (len(), any::<u8>()).prop_map(|(len, value)| StreamAct::Write(len, value)),
        2 => len().prop_map(StreamAct::Read),
        1 => (len(), len()).prop_map(|(skip, len)| StreamAct::Untaken(skip, len)),
        1 => prop::sample::select(&[StreamAct::Readable, StreamAct::Writable, StreamAct::Drained][..]),
        1 => Just(StreamAct::Progressed),
        1 => prop::option::weighted(0.1, Just(StreamAct::Rejoin)).prop_map(|act| act.unwrap_or(StreamAct::Readable)),
    ];
    prop::collection::vec(act, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn console(out in starts(), input in starts(), acts in acts()) {
        check::<ConsoleLayout>(out, input, &acts)?;
        check::<Reversed<ConsoleLayout>>(out, input, &acts)?;
    }

    #[test]
    fn xenstore(out in starts(), input in starts(), acts in acts()) {
        check::<XenstoreLayout>(out, input, &acts)?;
        check::<Reversed<XenstoreLayout>>(out, input, &acts)?;
    }

    #[test]
    fn a_peer_that_does_anything(out in starts(), input in starts(), acts in stream_acts()) {
        streams::<ConsoleLayout>(out, input, acts.iter().copied());
        streams::<XenstoreLayout>(out, input, acts.iter().copied());
        streams::<Reversed<ConsoleLayout>>(out, input, acts.iter().copied());
        streams::<Reversed<XenstoreLayout>>(out, input, acts);
    }

    #[test]
    fn a_peer_that_acts_between_two_accesses(every in 1..5_u32, acts in stream_acts()) {
        meddled_streams::<ConsoleLayout>(every, acts.iter().copied());
        meddled_streams::<XenstoreLayout>(every, acts);
    }
}

#[test]
fn a_page_with_nonsense_in_it_can_be_joined_and_is_broken_at_once() {
    for (cursor, value) in [(Cursor::OutProd, 2049), (Cursor::InProd, 1025), (Cursor::OutCons, 1)] {
        let shared = started::<ConsoleLayout>(0, 0);
        HostilePeer::<ConsoleLayout, _>::new(shared.clone()).unwrap().set(cursor, value);
        let mut ring = ByteRing::<ConsoleLayout, _>::new(shared).unwrap();
        let result = (ring.readable(), ring.writable());
        assert!(
            matches!(result, (Err(RingError::Broken(_)), _) | (_, Err(RingError::Broken(_)))),
            "{result:?}"
        );
        assert!(ring.is_broken());
        assert!(matches!((ring.read(&mut [0]), ring.write(&[0])), (Err(_), Err(_))));
    }
}

#[test]
fn what_an_earlier_user_left_is_gone_on_from() {
    let shared = started::<ConsoleLayout>(u32::MAX - 1, 5);
    let mut first = ByteRing::<ConsoleLayout, _>::new(shared.clone()).unwrap();
    first.write(b"from the loader, ").unwrap();
    HostilePeer::<ConsoleLayout, _>::new(shared.clone()).unwrap().send(b"typed early");
    first.read(&mut [0; 6]).unwrap();
    drop(first);
    let mut second = ByteRing::<ConsoleLayout, _>::new(shared.clone()).unwrap();
    second.write(b"then the kernel").unwrap();
    let mut out = [0; 64];
    let count = HostilePeer::<ConsoleLayout, _>::new(shared).unwrap().receive(&mut out);
    assert_eq!(&out[..count], b"from the loader, then the kernel");
    let count = second.read(&mut out).unwrap();
    assert_eq!(&out[..count], b"early");
}

#[test]
fn memory_too_small_for_the_layout_is_refused() {
    let mut shared = SharedPages::new(1);
    // The indices are the last things in both pages.
    for (len, fits) in [(0, false), (3084, false), (3087, false), (3088, true), (4096, true)] {
        let made = ByteRing::<ConsoleLayout, _>::new(shared.mem().slice(0, len).unwrap()).map(drop);
        assert_eq!(made.is_ok(), fits, "{len}: {made:?}");
        let made = HostilePeer::<ConsoleLayout, _>::new(shared.mem().slice(0, len).unwrap()).map(drop);
        assert_eq!(made.is_ok(), fits, "{len}: {made:?}");
    }
    let made = ByteRing::<XenstoreLayout, _>::new(shared.mem().slice(2, 4000).unwrap()).map(drop);
    assert!(matches!(made, Err(RingError::TooSmall(_))), "words must be aligned");
}

#[test]
fn words_beside_the_streams_are_reached_within_the_page_only() {
    let shared = SharedPages::new(1);
    let mut ring = ByteRing::<XenstoreLayout, _>::new(shared.clone()).unwrap();
    ring.set_word(XenstoreLayout::CONNECTION, 1).unwrap();
    assert_eq!(ring.word(XenstoreLayout::CONNECTION), Ok(1));
    assert_eq!(shared.snapshot()[2068..2072], 1_u32.to_ne_bytes());
    for offset in [4093, 4096, usize::MAX, 2] {
        assert!(matches!(ring.word(offset), Err(RingError::TooSmall(_))));
        assert!(matches!(ring.set_word(offset, 1), Err(RingError::TooSmall(_))));
    }
    assert!(!ring.is_broken());
}

#[test]
fn marking_the_page_writes_the_own_index_and_nothing_else() {
    let shared = started::<ConsoleLayout>(7, 0);
    let mut ring = ByteRing::<ConsoleLayout, _>::new(shared.clone()).unwrap();
    ring.write(b"said").unwrap();
    let before = shared.snapshot();
    ring.mark_written().unwrap();
    assert!(shared.snapshot() == before);
    // It is written, not left as it is.
    HostilePeer::<ConsoleLayout, _>::new(shared.clone()).unwrap().set(Cursor::OutProd, 1234);
    ring.mark_written().unwrap();
    assert!(shared.snapshot() == before);
}

/// What is read of the peer is read once: an index that changes after it was checked changes nothing.
#[test]
fn an_index_that_changes_between_check_and_use_does_not_matter() {
    let shared = started::<ConsoleLayout>(0, 0);
    let log = Rc::new(RefCell::new(0));
    let (count, mut peer) = (log.clone(), HostilePeer::<ConsoleLayout, _>::new(shared.clone()).unwrap());
    let meddled = Meddled::new(shared, move |_| {
        *count.borrow_mut() += 1;
        // The ring's first access each time is the index, the second the bytes.
        let possible = *count.borrow() % 2 == 1;
        peer.set(Cursor::InProd, if possible { 3 } else { 0xffff_0000 });
    });
    let mut ring = ByteRing::<ConsoleLayout, _>::new(meddled).unwrap();
    // `new` was the first access, so one more makes the next read begin with an odd one.
    let _ = ring.word(0);
    let mut out = [0x55; 2000];
    assert_eq!(ring.read(&mut out), Ok(3));
    assert!(out[3..].iter().all(|&byte| byte == 0x55));
    assert_eq!(*log.borrow(), 4, "one access for the index, one for the rest");
}

#[test]
fn progress_is_what_goes_beyond_all_that_was_seen() {
    let shared = started::<ConsoleLayout>(u32::MAX - 1, u32::MAX - 1);
    let mut ring = ByteRing::<ConsoleLayout, _>::new(shared.clone()).unwrap();
    let mut raw = HostilePeer::<ConsoleLayout, _>::new(shared).unwrap();
    assert_eq!(ring.progressed(), Ok(false));
    assert_eq!(ring.write(&[7; 4]), Ok(4));
    assert_eq!(ring.progressed(), Ok(false), "our own writing is none of the peer's");
    raw.set(Cursor::OutCons, 1);
    assert_eq!((ring.progressed(), ring.progressed()), (Ok(true), Ok(false)));
    raw.set(Cursor::InProd, 5);
    assert_eq!((ring.progressed(), ring.progressed()), (Ok(true), Ok(false)));
    // To and fro is nothing new.
    for _ in 0..3 {
        raw.set(Cursor::InProd, 2);
        raw.set(Cursor::OutCons, u32::MAX);
        assert_eq!(ring.progressed(), Ok(false));
        raw.set(Cursor::InProd, 5);
        raw.set(Cursor::OutCons, 1);
        assert_eq!(ring.progressed(), Ok(false));
    }
    assert_eq!(ring.read(&mut [0; 64]), Ok(7));
    assert_eq!(ring.progressed(), Ok(false));
    raw.set(Cursor::InProd, 6);
    assert_eq!(ring.progressed(), Ok(true));
    raw.set(Cursor::InProd, 6 + 1024 + 1);
    assert!(matches!(ring.progressed(), Err(RingError::Broken(_))));
}
