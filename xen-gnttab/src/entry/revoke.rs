//! How an entry is made to grant nothing while Xen may be about to use it, apart from where the words live, so that the
//! same code runs on loom's model of memory.
#![allow(unreachable_pub, reason = "public for the loom tests alone")]

/// "Reading" and "writing", in a version 1 entry's flags and in a version 2 status word.
pub const IN_USE: u16 = 0b11000;

/// How often a peer may change a version 1 entry's flags under our hands before it counts as using the page.
const ATTEMPTS: usize = 4;

/// The flags of a version 1 entry, in which Xen notes that the grant is in use by a compare-exchange.
pub trait FlagsV1 {
    /// Reads them; nothing is ordered.
    fn load(&self) -> u16;
    /// Makes them zero if they are `old`; what the peer did before it let go is visible afterwards. Otherwise what they
    /// are.
    fn clear(&self, old: u16) -> Result<(), u16>;
}

/// Takes a version 1 grant away, if the peer does not use it. False: it does, and the entry is as it was.
///
/// Either Xen sees the zero and refuses the peer, or we see the peer. A peer that maps and unmaps without pause could make
/// our exchange fail without end, hence the limit.
pub fn revoke_v1(entry: &impl FlagsV1) -> bool {
    let mut flags = entry.load();
    for _ in 0..ATTEMPTS {
        if flags & IN_USE != 0 {
            return false;
        }
        match entry.clear(flags) {
            Ok(()) => return true,
            Err(now) => flags = now,
        }
    }
    false
}

/// The flags of a version 2 entry, and the status word apart in which Xen notes that the grant is in use.
pub trait WordsV2 {
    /// Makes the flags zero; nothing is ordered.
    fn clear_flags(&self);
    /// A full fence.
    fn fence(&self);
    /// Reads the status word; what the peer did before it let go is visible afterwards.
    fn status(&self) -> u16;
}

/// Takes a version 2 grant away. False: the peer still uses what it got, though it cannot get it anew.
///
/// Xen sets the bits in the status word first, then looks at the flags once more, and takes the bits back if the grant is
/// gone. So after the full fence either Xen sees the zero and refuses the peer, or we see its bits, perhaps ones that it
/// takes back at once: then a later sweep finds the grant unused.
pub fn revoke_v2(entry: &impl WordsV2) -> bool {
    entry.clear_flags();
    entry.fence();
    entry.status() & IN_USE == 0
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::cell::Cell;

    use super::{ATTEMPTS, FlagsV1, revoke_v1};

    /// Flags that a peer changes so many times, each time between our look and our exchange.
    struct Restless {
        changes: Cell<usize>,
        granted: Cell<bool>,
    }

    impl FlagsV1 for Restless {
        fn load(&self) -> u16 {
            1
        }

        fn clear(&self, old: u16) -> Result<(), u16> {
            let Some(left) = self.changes.get().checked_sub(1) else {
                self.granted.set(false);
                return Ok(());
            };
            self.changes.set(left);
            // It used the page and let go again: nothing to be seen but a change.
            Err(old ^ 0b100)
        }
    }

    #[test]
    fn a_grant_counts_as_taken_away_only_when_it_is() {
        for changes in 0..=ATTEMPTS + 2 {
            let entry = Restless { changes: Cell::new(changes), granted: Cell::new(true) };
            assert_eq!(revoke_v1(&entry), !entry.granted.get(), "{changes} changes");
            assert_eq!(entry.granted.get(), changes >= ATTEMPTS, "{changes} changes");
        }
    }
}
