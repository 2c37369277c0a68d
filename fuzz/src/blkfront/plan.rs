//! What is tried with a disk, and how it goes wrong.

use xen_blkfront::mock::model::SECTORS;
use xen_blkfront::mock::{Discard, Fault, Faults, Options, Order};

use crate::input::{Number, Ops, Value, chance, input};

input! {
    /// What is tried.
    pub struct Plan {
        /// What the backend offers: a bit each.
        offers: u16,
        /// In which order it works.
        order: u8,
        /// What decides on faults.
        seed: u32,
        /// How often each goes wrong: misfortunes first, lies behind.
        faults: [u8; 20],
        /// What happens.
        ops: Ops<Op>,
    }

    /// Sectors.
    pub struct Range {
        at: u8,
        count: u8,
    }

    /// What happens next.
    pub enum Op {
        Read { range: Range },
        Write { range: Range },
        Flush,
        Discard { range: Range },
        SubmitRead { range: Range },
        SubmitWrite { range: Range },
        SubmitBarrier { range: Range },
        /// Reads to the caller's own pages, or writes from them.
        Lend { at: u8, pages: u8, write: bool },
        SubmitFlush,
        SubmitDiscard { range: Range, secure: bool },
        /// What is not on the disk, or far too much.
        SubmitFar { at: u64, sectors: u64 },
        Publish,
        Poll,
        Take { which: u8 },
        Forget { which: u8 },
        /// The far sides act.
        Step,
        Service,
        Reconnect,
        Stall { on: bool },
        Hold { on: bool },
        Detach,
        Drop,
        Vanish,
        ComeBack,
        Crash { seed: u8 },
        Resize { sectors: Number },
        /// The next response is wrong.
        Spoil { fault: FaultInput },
        /// A node of the backend says something else when it is written next.
        Say { node: u8, value: Value },
        /// The backend writes into its ring.
        Poke { offset: u16, bytes: [u8; 4] },
        /// It writes a number to a word at the ring's beginning: an index.
        Index { word: u8, number: Number },
        /// The guest is suspended, and goes on in a new domain or where it was: its next backend is in another domain, or offers
        /// less.
        Suspend { migrate: bool, elsewhere: bool, lean: bool },
    }

    /// What is wrong with a response.
    pub enum FaultInput {
        Bit { bit: u8 },
        SmallId { id: u8 },
        Operation { operation: u8 },
        Status { status: i16 },
        Twice,
        Index { by: Number },
        Lost,
        Unwritten,
    }
}

impl Range {
    /// As many sectors as one request has room for, or more: then there are several, or one with a page of segments.
    pub(super) fn get(&self) -> (u64, u64) {
        let at = u64::from(self.at) % SECTORS;
        (at, (1 + u64::from(self.count) % 160).min(SECTORS - at))
    }
}

impl FaultInput {
    pub(super) fn fault(&self) -> Fault {
        match *self {
            Self::Bit { bit } => Fault::Bit(bit),
            Self::SmallId { id } => Fault::Id(id.into()),
            Self::Operation { operation } => Fault::Operation(operation),
            Self::Status { status } => Fault::Status(status),
            Self::Twice => Fault::Twice,
            Self::Index { ref by } => Fault::Index(by.get()),
            Self::Lost => Fault::Lost,
            Self::Unwritten => Fault::Unwritten,
        }
    }
}

impl Plan {
    pub(super) fn options(&self) -> Options {
        let bit = |bit: u16| self.offers & 1 << bit != 0;
        Options {
            sectors: SECTORS,
            flush: bit(0),
            barrier: bit(1),
            discard: bit(2).then(Discard::default),
            persistent: bit(3),
            persistent_limit: if bit(4) { 20 } else { 1056 },
            indirect_segments: bit(5).then_some(if bit(6) { 26 } else { 13 }),
            max_ring_page_order: bit(7).then_some(1),
            max_queues: bit(8).then_some(3),
            volatile_cache: bit(9),
            read_only: bit(10) && bit(11),
            order: match self.order {
                ..100 => Order::Sent,
                100..170 => Order::Reversed,
                _ => Order::Shuffled(self.order.into()),
            },
            ..Options::default()
        }
    }

    pub(super) fn faults(&self) -> Faults {
        let mut often = self.faults;
        // What is always late never comes, and the mock's time does not go on while its backend is at it.
        often[2] = often[2].min(254);
        let f = often.map(chance);
        let mut faults = Faults::default();
        [faults.fail, faults.unsupported, faults.late, faults.late_event] = [f[0], f[1], f[2], f[3]];
        [faults.spurious_event, faults.stall, faults.lost, faults.lost_event] = [f[4], f[5], f[6], f[7]];
        [faults.keep_mapped, faults.close, faults.drop_out, faults.die] = [f[8], f[9], f[10], f[11]];
        [faults.come_back, faults.scribble, faults.odd_status, faults.wrong_id] =
            [f[12], f[13], f[14], f[15]];
        [faults.wrong_operation, faults.twice, faults.unwritten, faults.index_jump] =
            [f[16], f[17], f[18], f[19]];
        faults
    }
}
