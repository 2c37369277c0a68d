//! The name of a request.

/// Names a request until its result is [taken](crate::BlkFront::take) or [forgotten](crate::BlkFront::forget).
#[must_use = "the request's result stays until it is taken or forgotten"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    pub(crate) index: u8,
    /// How often the slot was used: makes a response that comes twice, or far too late, one to no request.
    pub(crate) generation: u32,
}

impl Ticket {
    /// As it travels.
    pub(crate) fn id(self) -> u64 {
        u64::from(self.generation) << 8 | u64::from(self.index)
    }

    pub(crate) fn from_id(id: u64) -> Option<Self> {
        Some(Self { index: id as u8, generation: u32::try_from(id >> 8).ok()? })
    }
}
