//! A daemon that does not do as it should, by chance.

use std::vec;
use std::vec::Vec;

use xen_hypercall::mock::{Chance, Dice};

/// What may go wrong, and how often. Nothing does at first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Faults {
    /// A transaction ends as if it had clashed (`EAGAIN`).
    pub again: Chance,
    /// An operation other than the end of a transaction is refused (`EBUSY`).
    pub refused: Chance,
    /// The node that is read is not there (`ENOENT`).
    pub missing: Chance,
    /// The value that is read is empty.
    pub empty: Chance,
    /// The value that is read is text, but no number.
    pub not_number: Chance,
    /// The value that is read is not text.
    pub not_text: Chance,
    /// The value that is read is as long as a message can be.
    pub too_long: Chance,
    /// An answer comes only after the guest has asked something else.
    pub late: Chance,
    /// An answer comes twice.
    pub doubled: Chance,
    /// A watch event comes twice.
    pub doubled_event: Chance,
    /// After an answer comes the event of a watch whose node has not changed.
    pub spurious_event: Chance,
    /// After an answer comes the event of a watch that nobody has set.
    pub unknown_event: Chance,
    /// The daemon gives the connection up, as it does with a guest that breaks the protocol.
    pub gives_up: Chance,
}

impl Faults {
    /// No faults.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Faults with what decides on them.
pub(super) struct Trouble {
    pub(super) dice: Dice,
    pub(super) faults: Faults,
}

impl Default for Trouble {
    fn default() -> Self {
        Self { dice: Dice::new(0), faults: Faults::default() }
    }
}

impl Trouble {
    pub(super) fn hits(&self, fault: impl FnOnce(&Faults) -> Chance) -> bool {
        self.dice.hit(fault(&self.faults))
    }

    /// What is read instead of the value, if it is anything else.
    pub(super) fn spoil(&self, value: Vec<u8>) -> Vec<u8> {
        if self.hits(|f| f.empty) {
            Vec::new()
        } else if self.hits(|f| f.not_number) {
            b"twelve".to_vec()
        } else if self.hits(|f| f.not_text) {
            vec![0xff, 0xfe, 0x80]
        } else if self.hits(|f| f.too_long) {
            vec![b'9'; crate::wire::PAYLOAD_MAX]
        } else {
            value
        }
    }

    /// One of a list.
    pub(super) fn pick<'l, T>(&self, list: &'l [T]) -> Option<&'l T> {
        list.get(usize::try_from(self.dice.below(list.len() as u64)).ok()?)
    }
}
