//! What a backend of the mock does wrong: the next thing, told exactly, or anything, by chance.

use xen_hypercall::mock::Chance;

/// What is wrong with a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It names this request.
    Id(u64),
    /// One bit of the request's name is another: with a high one it is that of an earlier request in the same place.
    Bit(u8),
    /// It names this operation.
    Operation(u8),
    /// The request is not done, and this is the response's status.
    Status(i16),
    /// It is there twice: it takes the place of the next answer in its ring, whenever that is.
    Twice,
    /// After it the ring's producer index is ahead by so much more.
    Index(u32),
    /// There is none: the request is not done and never answered.
    Lost,
    /// The index counts it, but it was never written: the slot holds what was there before, the request mostly.
    Unwritten,
}

/// How often a backend does what wrong, each by itself. None of it by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Faults {
    /// A request is not done, and fails (`BLKIF_RSP_ERROR`).
    pub fail: Chance,
    /// A request is not done, and its operation is called unsupported (`BLKIF_RSP_EOPNOTSUPP`), announced or not.
    pub unsupported: Chance,
    /// A request is not done, and has a status that the protocol does not know.
    pub odd_status: Chance,
    /// A request is served in the next step only, after those that are sent until then.
    pub late: Chance,
    /// A request is neither done nor answered.
    pub lost: Chance,
    /// A response names a request that was never sent, or another one.
    pub wrong_id: Chance,
    /// A response names another operation.
    pub wrong_operation: Chance,
    /// A response is there twice.
    pub twice: Chance,
    /// A response is counted and was never written.
    pub unwritten: Chance,
    /// The ring's producer index jumps: forward, backward, or beyond the ring.
    pub index_jump: Chance,
    /// All that the backend can write to in the ring's pages and is not its own changes between two looks of the
    /// guest: the guest's index, the event fields, requests and old responses.
    pub scribble: Chance,
    /// A page stays mapped after its request, whatever was agreed on, until [`hold`](super::MockBlkback::hold)
    /// is called with `false`.
    pub keep_mapped: Chance,
    /// An event is not sent.
    pub lost_event: Chance,
    /// An event is sent some time later.
    pub late_event: Chance,
    /// An event is sent without reason; looked at in each step.
    pub spurious_event: Chance,
    /// The backend begins to close; in each step while it is connected.
    pub close: Chance,
    /// The backend is closed all at once, without closing before; in each step while it is connected.
    pub drop_out: Chance,
    /// The backend's domain dies, with its nodes; in each step while it is connected.
    pub die: Chance,
    /// A backend whose domain died is there again; in each step.
    pub come_back: Chance,
    /// The backend does nothing in this step.
    pub stall: Chance,
}

impl Faults {
    /// What happens with an honest backend, too, on a bad day: nothing here breaks the protocol.
    pub fn honest(chance: Chance) -> Self {
        Self {
            fail: chance,
            unsupported: chance,
            late: chance,
            late_event: chance,
            spurious_event: chance,
            stall: chance,
            ..Self::default()
        }
    }

    /// Everything at once.
    pub fn all(chance: Chance) -> Self {
        Self {
            odd_status: chance,
            lost: chance,
            wrong_id: chance,
            wrong_operation: chance,
            twice: chance,
            unwritten: chance,
            index_jump: chance,
            scribble: chance,
            keep_mapped: chance,
            lost_event: chance,
            close: chance,
            drop_out: chance,
            die: chance,
            come_back: chance,
            ..Self::honest(chance)
        }
    }
}
