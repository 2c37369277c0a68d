//! An entry of version 1 that changes between the guest's look at it and its exchange: the one thing that cannot happen while
//! both sides run in one thread.

use core::cell::Cell;

use crate::abi::GrantFlags;
use crate::entry::revoke::{FlagsV1, IN_USE, revoke_v1};

/// Flags, and what is changed in them before each exchange.
struct Restless<'c> {
    flags: Cell<u16>,
    changes: Cell<&'c [u8]>,
    /// Whether an exchange was tried while the page was seen to be in use.
    overrode: Cell<bool>,
}

impl Restless<'_> {
    /// What else the flags say changes. That there is a grant does not: that is the guest's to say.
    fn change(&self) {
        const MAY: u16 = IN_USE | GrantFlags::READONLY.bits();
        if let Some((change, rest)) = self.changes.get().split_first() {
            self.changes.set(rest);
            self.flags.set(self.flags.get() ^ (u16::from(*change) & MAY));
        }
    }
}

impl FlagsV1 for Restless<'_> {
    fn load(&self) -> u16 {
        self.flags.get()
    }

    fn clear(&self, old: u16) -> Result<(), u16> {
        self.change();
        if self.flags.get() != old {
            return Err(self.flags.get());
        }
        self.overrode.set(self.overrode.get() || old & IN_USE != 0);
        self.flags.set(0);
        Ok(())
    }
}

/// A grant that counts as taken away is, and one in use is left as it is. The first of the changes is made before the guest
/// looks.
pub(super) fn revoke(changes: &[u8]) {
    let entry = Restless {
        flags: Cell::new(GrantFlags::PERMIT_ACCESS.bits()),
        changes: Cell::new(changes),
        overrode: Cell::new(false),
    };
    entry.change();
    let revoked = revoke_v1(&entry);
    assert!(!entry.overrode.get(), "a grant in use was taken away");
    assert_eq!(
        revoked,
        entry.flags.get() == 0,
        "counts as taken away: {revoked}, and is {:#x}",
        entry.flags.get()
    );
}
