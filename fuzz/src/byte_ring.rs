//! Two byte streams in a page, as console and xenstore have them, whose other end does anything, at any time.
//!
//! What is written stands where it belongs, what is read is what stands there, an index that cannot be breaks the
//! streams, and what is ours is never read back.

use xen_ring::mock::model::{StreamAct, meddled_streams, streams};
use xen_ring::mock::{Cursor, PeerOp};
use xen_ring::{ConsoleLayout, XenstoreLayout};

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
        Untaken { skip: u16, len: u16 },
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

impl Act {
    /// The same as the model's.
    fn act(&self) -> StreamAct {
        let len = |len: u16| usize::from(len) % 3000;
        match *self {
            Self::Write { len: n, value } => StreamAct::Write(len(n), value),
            Self::Read { len: n } => StreamAct::Read(len(n)),
            Self::Readable => StreamAct::Readable,
            Self::Writable => StreamAct::Writable,
            Self::Drained => StreamAct::Drained,
            Self::Progressed => StreamAct::Progressed,
            Self::Untaken { skip, len: n } => StreamAct::Untaken(len(skip), len(n)),
            Self::Rejoin => StreamAct::Rejoin,
            Self::Peer { ref act } => StreamAct::Peer(act.op()),
        }
    }
}

/// Tries an input.
pub fn run(data: &[u8]) {
    attempt(data, |plan: &Plan| match plan {
        Plan::Console { begin, acts } => {
            streams::<ConsoleLayout>(begin.get(), begin.get(), acts.0.iter().map(Act::act));
        }
        Plan::Xenstore { begin, acts } => {
            streams::<XenstoreLayout>(begin.get(), begin.get(), acts.0.iter().map(Act::act));
        }
        Plan::Meddled { every, acts } => {
            meddled_streams::<ConsoleLayout>(u32::from(every % 5) + 1, acts.0.iter().map(Act::act));
        }
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
            Act::Untaken { skip: 100, len: 1900 },
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
