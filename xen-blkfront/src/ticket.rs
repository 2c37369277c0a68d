//! The name of an operation.

/// Names an operation until its result is [taken](crate::BlkFront::take) or [forgotten](crate::BlkFront::forget).
#[must_use = "the operation's result stays until it is taken or forgotten"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    pub(crate) index: u16,
    /// How often its place was used.
    pub(crate) generation: u32,
}
