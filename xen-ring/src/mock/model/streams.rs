//! Two byte streams.

use std::vec;

use super::meddle;
use crate::mock::{Cursor, HostilePeer, PeerOp, SharedPages};
use crate::{ByteRing, RingError, StreamLayout, Violation};

/// What happens next to two byte streams.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamAct {
    /// [`ByteRing::write`], of so many bytes with this value.
    Write(usize, u8),
    /// [`ByteRing::read`], of so many bytes at most.
    Read(usize),
    /// [`ByteRing::readable`].
    Readable,
    /// [`ByteRing::writable`].
    Writable,
    /// [`ByteRing::is_drained`].
    Drained,
    /// [`ByteRing::progressed`].
    Progressed,
    /// [`ByteRing::untaken`], behind so many bytes, and so many at most.
    Untaken(usize, usize),
    /// [`ByteRing::rejoin`].
    Rejoin,
    /// The peer does something.
    Peer(PeerOp),
}

/// Plays acts on streams whose indices begin at `out` and `input`. What is written stands where it belongs, and nothing else
/// changes; what is read is what stands there; an index that cannot be breaks the streams; what is ours is never read back.
///
/// # Panics
/// When it is not so.
pub fn streams<L: StreamLayout>(out: u32, input: u32, acts: impl IntoIterator<Item = StreamAct>) {
    let shared = SharedPages::new(1);
    let mut peer = HostilePeer::<L, _>::new(shared.clone()).expect("a page is enough");
    for (cursor, value) in
        [(Cursor::OutCons, out), (Cursor::OutProd, out), (Cursor::InCons, input), (Cursor::InProd, input)]
    {
        peer.set(cursor, value);
    }
    let mut ring = ByteRing::<L, _>::new(shared.clone()).expect("a page is enough");
    let (mut written, mut read, mut broken) = (out, input, None);
    for act in acts {
        // What the peer's indices say.
        let (produced, consumed) = (peer.get(Cursor::InProd), peer.get(Cursor::OutCons));
        // Bytes to read, and bytes that the peer has not read.
        let (there, unread) = (produced.wrapping_sub(read), written.wrapping_sub(consumed));
        let reads = match there <= L::IN.1 {
            true => Ok(()),
            false => Err(Violation { index: produced, ours: read, limit: L::IN.1 }),
        };
        let writes = match unread <= L::OUT.1 {
            true => Ok(()),
            false => Err(Violation { index: consumed, ours: written, limit: L::OUT.1 }),
        };
        let room = L::OUT.1.wrapping_sub(unread) as usize;
        let before = shared.snapshot();
        let (was_written, was_read) = (written, read);
        let (expected, result) = match act {
            StreamAct::Peer(op) => {
                peer.apply(op);
                continue;
            }
            StreamAct::Rejoin => {
                ring.rejoin().expect("a page is enough");
                (written, read) = (peer.get(Cursor::OutProd), peer.get(Cursor::InCons));
                broken = None;
                assert!(!ring.is_broken());
                continue;
            }
            StreamAct::Readable => (reads, ring.readable().map(|count| assert_eq!(count, there as usize))),
            StreamAct::Writable => (writes, ring.writable().map(|count| assert_eq!(count, room))),
            StreamAct::Drained => (writes, ring.is_drained().map(|drained| assert_eq!(drained, unread == 0))),
            StreamAct::Progressed => (reads.and(writes), ring.progressed().map(drop)),
            StreamAct::Untaken(skip, len) => {
                let mut copy = vec![0; len];
                let copied = ring.untaken(skip, &mut copy).map(|count| {
                    assert_eq!(count, len.min((unread as usize).saturating_sub(skip)));
                    for (offset, byte) in (skip as u32..).zip(&copy[..count]) {
                        let at = L::OUT.0 + (consumed.wrapping_add(offset) % L::OUT.1) as usize;
                        assert_eq!(*byte, before[at]);
                    }
                });
                (writes, copied)
            }
            StreamAct::Write(len, value) => {
                let wrote = ring.write(&vec![value; len]).map(|count| {
                    assert_eq!(count, len.min(room));
                    written = written.wrapping_add(count as u32);
                    // Nothing written says nothing; something says how much, whatever the peer had put there.
                    assert!(count == 0 || peer.get(Cursor::OutProd) == written);
                    let after = shared.snapshot();
                    for offset in 0..count as u32 {
                        let at = L::OUT.0 + (was_written.wrapping_add(offset) % L::OUT.1) as usize;
                        assert_eq!(after[at], value);
                    }
                });
                (writes, wrote)
            }
            StreamAct::Read(len) => {
                let mut copy = vec![0x77; len];
                let got = ring.read(&mut copy).map(|count| {
                    assert_eq!(count, len.min(there as usize));
                    for (offset, byte) in (0..).zip(&copy[..count]) {
                        let at = L::IN.0 + (read.wrapping_add(offset) % L::IN.1) as usize;
                        assert_eq!(before[at], *byte);
                    }
                    read = read.wrapping_add(count as u32);
                    assert!(count == 0 || peer.get(Cursor::InCons) == read);
                    assert!(copy[count..].iter().all(|byte| *byte == 0x77), "more was read than is told");
                });
                (reads, got)
            }
        };
        match (broken, expected, result) {
            (None, Ok(()), result) => assert_eq!(result, Ok(())),
            (None, Err(violation), result) => {
                assert_eq!(result, Err(RingError::Broken(violation)), "an index that cannot be");
                broken = Some(violation);
            }
            (Some(violation), _, result) => {
                assert_eq!(result, Err(RingError::Broken(violation)), "broken means broken");
            }
        }
        assert_eq!((ring.violation(), ring.is_broken()), (broken, broken.is_some()));
        // Nothing is written but the stream and the two indices, as far as they moved.
        for (at, (was, is)) in
            before.iter().zip(&shared.snapshot()[..]).enumerate().filter(|(_, (was, is))| was != is)
        {
            let within = |offset: usize, len: usize| (offset..offset + len).contains(&at);
            let stream = within(L::OUT.0, L::OUT.1 as usize) || within(L::OUT_INDICES.1, 4);
            let ours = (written != was_written && stream) || (read != was_read && within(L::IN_INDICES.0, 4));
            assert!(ours, "byte {at} was {was} and is {is}");
        }
    }
}

/// Plays acts on the console's streams, and the peer's between any `every` accesses to memory: then there is no telling what is
/// right, but each call ends, no call panics, and broken means broken.
///
/// # Panics
/// When it is not so.
pub fn meddled_streams<L: StreamLayout>(every: u32, acts: impl IntoIterator<Item = StreamAct>) {
    let shared = SharedPages::new(1);
    let mut peer = HostilePeer::<L, _>::new(shared.clone()).expect("a page is enough");
    let (meddled, waiting) = meddle(shared, every, move |op| peer.apply(op));
    let mut ring = ByteRing::<L, _>::new(meddled).expect("a page is enough");
    for act in acts {
        let was_broken = ring.is_broken();
        let result = match act {
            StreamAct::Write(len, value) => ring.write(&vec![value; len]),
            StreamAct::Read(len) => ring.read(&mut vec![0; len]),
            StreamAct::Readable => ring.readable(),
            StreamAct::Writable => ring.writable(),
            StreamAct::Drained => ring.is_drained().map(usize::from),
            StreamAct::Progressed => ring.progressed().map(usize::from),
            StreamAct::Untaken(skip, len) => ring.untaken(skip, &mut vec![0; len]),
            StreamAct::Rejoin => {
                ring.rejoin().expect("a page is enough");
                continue;
            }
            StreamAct::Peer(op) => {
                waiting.borrow_mut().push(op);
                continue;
            }
        };
        match result {
            Ok(count) => assert!(count <= L::OUT.1.max(L::IN.1) as usize && !was_broken),
            Err(error) => assert!(matches!(error, RingError::Broken(_)) && ring.is_broken()),
        }
    }
}
