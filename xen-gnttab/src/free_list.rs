//! The free references: a lock-free stack, linked through the references' own slots.
//!
//! Apart from where head and links live ([`Links`]), so that the same code runs on loom's model of memory.
#![allow(unreachable_pub, reason = "public for the loom tests alone")]

/// Somebody found the stack empty and waits. In the head, so that whoever pushes next cannot miss it.
const WAITING: u64 = 1 << 31;
const REFERENCE: u64 = WAITING - 1;

/// Head and links of the stack.
///
/// The head's low half is the first free reference, or 0, which is reserved and so never free; its bit 31 says that somebody
/// waits for one. The high half is a tag that changes with every operation, so that a head that was taken, used and put back
/// between another caller's look and exchange is not mistaken for the one it saw: its link may be another by then.
pub trait Links {
    /// Reads the head; what was done before the exchange that set it is visible afterwards.
    fn head(&self) -> u64;
    /// Replaces the head if it is `old`, in both directions ordered with what stands around it; otherwise what it is. May
    /// fail for no reason.
    fn exchange_head(&self, old: u64, new: u64) -> Result<(), u64>;
    /// What was set last as the link of a reference; something meaningless while the reference is not in the stack. `None`
    /// if there is no such reference.
    fn next(&self, reference: u32) -> Option<u32>;
    /// Links a reference that is the caller's.
    fn set_next(&self, reference: u32, next: u32);
}

/// Puts references into the stack that are linked from `first` to `last`; they may be the same. The caller owns them, and
/// from then on does not. True: somebody waits for one and must be woken.
pub fn push_chain(links: &impl Links, first: u32, last: u32) -> bool {
    let mut head = links.head();
    loop {
        links.set_next(last, first_of(head));
        match links.exchange_head(head, successor(head, first)) {
            Ok(()) => return head & WAITING != 0,
            Err(now) => head = now,
        }
    }
}

/// Takes a reference; it is the caller's alone.
pub fn pop(links: &impl Links) -> Option<u32> {
    let mut head = links.head();
    loop {
        let reference = first_of(head);
        if reference == 0 {
            return None;
        }
        // If another caller has taken it meanwhile this is no link. The tag is another then, and the exchange fails.
        let next = links.next(reference)?;
        match links.exchange_head(head, successor(head, next)) {
            Ok(()) => return Some(reference),
            Err(now) => head = now,
        }
    }
}

/// Takes `count` references at once, at least one, linked from the one that is returned; or none.
pub fn pop_chain(links: &impl Links, count: u32) -> Option<u32> {
    let mut head = links.head();
    loop {
        let first = first_of(head);
        // While others take from the stack the links lead anywhere, though no further than `count` steps.
        let mut after = Some(first);
        for _ in 0..count {
            after = after.filter(|reference| *reference != 0).and_then(|reference| links.next(reference));
        }
        match after {
            Some(after) => match links.exchange_head(head, successor(head, after)) {
                Ok(()) => return Some(first),
                Err(now) => head = now,
            },
            // It ended early: because it has no more, unless somebody changed it under our hands.
            None => match links.head() {
                now if now == head => return None,
                now => head = now,
            },
        }
    }
}

/// Notes that the caller waits. False: there is a free reference, so it need not. True: whoever pushes next is told.
///
/// The caller has left word how to wake it before.
pub fn wait(links: &impl Links) -> bool {
    let mut head = links.head();
    loop {
        if first_of(head) != 0 {
            return false;
        }
        match links.exchange_head(head, successor(head, 0) | WAITING) {
            Ok(()) => return true,
            Err(now) => head = now,
        }
    }
}

/// Makes the stack these references, linked from `first` on, whatever was in it. Who waits is to be woken.
pub fn replace(links: &impl Links, first: u32) {
    let mut head = links.head();
    while let Err(now) = links.exchange_head(head, successor(head, first)) {
        head = now;
    }
}

fn first_of(head: u64) -> u32 {
    (head & REFERENCE) as u32
}

fn successor(head: u64, first: u32) -> u64 {
    let tag = (head >> 32) as u32;
    u64::from(tag.wrapping_add(1)) << 32 | u64::from(first) & REFERENCE
}
