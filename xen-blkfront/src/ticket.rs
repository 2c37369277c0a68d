//! The name of an operation.

/// Names an operation until its result is [taken](crate::BlkFront::take) or [forgotten](crate::BlkFront::forget).
#[must_use = "the operation's result stays until it is taken or forgotten"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// The operation's number, which no other has, with its place in the low bits.
    pub(crate) id: u64,
}

impl Ticket {
    #[inline]
    pub(crate) fn place(self) -> u16 {
        self.id as u16
    }
}
