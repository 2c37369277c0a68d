//! Two byte streams in a page, as console and xenstore have them, whose other end does anything, at any time.
//!
//! What is written stands where it belongs, what is read is what stands there, an index that cannot be breaks the
//! streams, and what is ours is never read back.

use std::cell::RefCell;
use std::rc::Rc;

use xen_ring::mock::{Cursor, HostilePeer, Meddled, PeerOp, SharedPages};
use xen_ring::{ByteRing, ConsoleLayout, RingError, StreamLayout, XenstoreLayout};

use crate::input::{Input, Number, Ops, input};
use crate::machine::attempt;

input! {
    /// What is tried.
    pub enum Plan {
        Console { begin: Number, acts: Ops<Act> },
        Xenstore { begin: Number, acts: Ops<Act> },
        /// The peer acts between any two accesses to memory.
        Meddled { every: u8, acts: Ops<Act> },
    }

    /// What happens next.
    pub enum Act {
        Write { len: u16, value: u8 },
        Read { len: u16 },
        Readable,
        Writable,
        Drained,
        Progressed,
        Rejoin,
        Peer { act: Hostile },
    }

    /// What the peer does.
    pub enum Hostile {
        Send { count: u16, value: u8 },
        Receive { count: u16 },
        Set { cursor: u8, value: Number },
        Advance { cursor: u8, by: Number },
        Write { offset: u16, bytes: [u8; 8] },
    }
}

impl Hostile {
    /// The same as the mock's.
    pub fn op(&self) -> PeerOp {
        let cursor = |cursor: u8| Cursor::ALL[usize::from(cursor % 4)];
        match *self {
            Self::Send { count, value } => PeerOp::Send { count: count % 3000, value },
            Self::Receive { count } => PeerOp::Receive { count: count % 3000 },
            Self::Set { cursor: which, ref value } => {
                PeerOp::Set { cursor: cursor(which), value: value.get() }
            }
            Self::Advance { cursor: which, ref by } => {
                PeerOp::Advance { cursor: cursor(which), by: by.get() }
            }
            Self::Write { offset, bytes } => PeerOp::Write { offset: offset % 4096, bytes },
        }
    }
}

fn stream<L: StreamLayout>(begin: u32, acts: &[Act]) {
    let shared = SharedPages::new(1);
    let mut peer = HostilePeer::<L, _>::new(shared.clone()).expect("a page is enough");
    for cursor in Cursor::ALL {
        peer.set(cursor, begin);
    }
    let mut ring = ByteRing::<L, _>::new(shared.clone()).expect("a page is enough");
    let (mut written, mut read, mut broken) = (begin, begin, None);
    for act in acts {
        // What the peer's indices say: bytes to read, bytes not read yet by the peer.
        let there = peer.get(Cursor::InProd).wrapping_sub(read);
        let unread = written.wrapping_sub(peer.get(Cursor::OutCons));
        let reads = there <= L::IN.1;
        let writes = unread <= L::OUT.1;
        let error = match *act {
            Act::Peer { ref act } => {
                peer.apply(act.op());
                continue;
            }
            Act::Rejoin => {
                ring.rejoin().expect("a page is enough");
                (written, read) = (peer.get(Cursor::OutProd), peer.get(Cursor::InCons));
                broken = None;
                assert!(!ring.is_broken());
                continue;
            }
            Act::Readable => ring.readable().map(|count| assert_eq!(count, there as usize)).err(),
            Act::Writable => ring.writable().map(|room| assert_eq!(room, (L::OUT.1 - unread) as usize)).err(),
            Act::Drained => ring.is_drained().map(|drained| assert_eq!(drained, unread == 0)).err(),
            Act::Progressed => ring.progressed().map(drop).err(),
            Act::Write { len, value } => {
                let data = vec![value; usize::from(len) % 3000];
                ring.write(&data)
                    .map(|count| {
                        assert_eq!(count, data.len().min((L::OUT.1 - unread) as usize));
                        let bytes = shared.snapshot();
                        for i in 0..count as u32 {
                            let at = L::OUT.0 + (written.wrapping_add(i) % L::OUT.1) as usize;
                            assert_eq!(bytes[at], value);
                        }
                        written = written.wrapping_add(count as u32);
                        // Nothing written says nothing; something says how much, whatever the peer had put there.
                        assert!(count == 0 || peer.get(Cursor::OutProd) == written);
                    })
                    .err()
            }
            Act::Read { len } => {
                let mut out = vec![0; usize::from(len) % 3000];
                let bytes = shared.snapshot();
                ring.read(&mut out)
                    .map(|count| {
                        assert_eq!(count, out.len().min(there as usize));
                        for (i, byte) in (0..).zip(&out[..count]) {
                            let at = L::IN.0 + (read.wrapping_add(i) % L::IN.1) as usize;
                            assert_eq!(bytes[at], *byte);
                        }
                        read = read.wrapping_add(count as u32);
                        assert!(count == 0 || peer.get(Cursor::InCons) == read);
                    })
                    .err()
            }
        };
        let expected = match act {
            Act::Readable | Act::Read { .. } => reads,
            Act::Progressed => reads && writes,
            _ => writes,
        };
        match (broken, error) {
            (None, None) => assert!(expected, "an index that cannot be is believed"),
            (None, Some(error)) => {
                assert!(!expected && matches!(error, RingError::Broken(_)), "{error:?}");
                broken = Some(error);
            }
            (Some(before), now) => assert_eq!(now, Some(before), "broken means broken"),
        }
        assert_eq!(ring.is_broken(), broken.is_some());
    }
}

fn meddled(every: u8, acts: &[Act]) {
    let shared = SharedPages::new(1);
    let mut peer = HostilePeer::<ConsoleLayout, _>::new(shared.clone()).expect("a page is enough");
    let waiting = Rc::new(RefCell::new(Vec::new()));
    let (queue, mut count) = (Rc::clone(&waiting), 0_u32);
    let meddled = Meddled::new(shared, move |_| {
        count = count.wrapping_add(1);
        if count.is_multiple_of(u32::from(every % 5) + 1)
            && let Some(op) = queue.borrow_mut().pop()
        {
            peer.apply(op);
        }
    });
    let mut ring = ByteRing::<ConsoleLayout, _>::new(meddled).expect("a page is enough");
    let mut out = [0; 3000];
    for act in acts {
        let was_broken = ring.is_broken();
        let result = match *act {
            Act::Write { len, value } => ring.write(&vec![value; usize::from(len) % 3000]),
            Act::Read { len } => ring.read(&mut out[..usize::from(len) % 3000]),
            Act::Readable => ring.readable(),
            Act::Writable => ring.writable(),
            Act::Drained => ring.is_drained().map(usize::from),
            Act::Progressed => ring.progressed().map(usize::from),
            Act::Rejoin => {
                ring.rejoin().expect("a page is enough");
                continue;
            }
            Act::Peer { ref act } => {
                waiting.borrow_mut().push(act.op());
                continue;
            }
        };
        match result {
            Ok(count) => assert!(count <= 2048 && !was_broken),
            Err(error) => assert!(matches!(error, RingError::Broken(_)) && ring.is_broken()),
        }
    }
}

/// Tries an input.
pub fn run(data: &[u8]) {
    attempt(data, |plan: &Plan| match plan {
        Plan::Console { begin, acts } => stream::<ConsoleLayout>(begin.get(), &acts.0),
        Plan::Xenstore { begin, acts } => stream::<XenstoreLayout>(begin.get(), &acts.0),
        Plan::Meddled { every, acts } => meddled(*every, &acts.0),
    });
}

/// Inputs to begin with.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let traffic = || {
        vec![
            Act::Write { len: 900, value: 1 },
            Act::Peer { act: Hostile::Send { count: 700, value: 2 } },
            Act::Peer { act: Hostile::Receive { count: 500 } },
            Act::Progressed,
            Act::Readable,
            Act::Read { len: 600 },
            Act::Write { len: 2500, value: 3 },
            Act::Writable,
            Act::Drained,
        ]
    };
    let with =
        |act| Ops([traffic(), vec![Act::Peer { act }], traffic(), vec![Act::Rejoin], traffic()].concat());
    let ahead = || Hostile::Advance { cursor: 3, by: Number::Power { bit: 10, more: 1 } };
    let near_end = || Number::Down { by: 200 };
    vec![
        ("traffic", {
            let act = Hostile::Write { offset: 1000, bytes: [7; 8] };
            Plan::Console { begin: near_end(), acts: with(act) }.bytes()
        }),
        ("ahead", Plan::Console { begin: near_end(), acts: with(ahead()) }.bytes()),
        ("behind", {
            let act = Hostile::Advance { cursor: 0, by: Number::Down { by: 200 } };
            Plan::Xenstore { begin: near_end(), acts: with(act) }.bytes()
        }),
        ("ours", {
            let act = Hostile::Set { cursor: 1, value: Number::Any { value: 77 } };
            Plan::Xenstore { begin: Number::Up { by: 0 }, acts: with(act) }.bytes()
        }),
        ("meddled", Plan::Meddled { every: 1, acts: with(ahead()) }.bytes()),
    ]
}
