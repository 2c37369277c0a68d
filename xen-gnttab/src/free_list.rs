//! The free references: a lock-free stack, linked through the references' own slots.
//!
//! Apart from where head and links live ([`Links`]), so that the same code runs on loom's model of memory.
#![allow(unreachable_pub, reason = "public for the loom tests alone")]

/// Head and links of the stack.
///
/// The head's low half is the first free reference, or 0, which is reserved and so never free. Its high half is a tag that
/// changes with every operation, so that a head that was taken, used and put back between another caller's look and
/// exchange is not mistaken for the one it saw: its link may be another by then.
pub trait Links {
    /// Reads the head; what was done before the exchange that set it is visible afterwards.
    fn head(&self) -> u64;
    /// Replaces the head if it is `old`, in both directions ordered with what stands around it; otherwise what it is. May
    /// fail for no reason.
    fn exchange_head(&self, old: u64, new: u64) -> Result<(), u64>;
    /// What was set last as the link of a reference; something meaningless while the reference is not in the stack.
    fn next(&self, reference: u32) -> Option<u32>;
    /// Links a reference that is the caller's.
    fn set_next(&self, reference: u32, next: u32);
}

/// Puts a reference into the stack. The caller owns it, and from then on does not.
pub fn push(links: &impl Links, reference: u32) {
    let mut head = links.head();
    loop {
        links.set_next(reference, head as u32);
        match links.exchange_head(head, successor(head, reference)) {
            Ok(()) => return,
            Err(now) => head = now,
        }
    }
}

/// Takes a reference; it is the caller's alone.
pub fn pop(links: &impl Links) -> Option<u32> {
    let mut head = links.head();
    loop {
        let reference = head as u32;
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

fn successor(head: u64, first: u32) -> u64 {
    let tag = (head >> 32) as u32;
    u64::from(tag.wrapping_add(1)) << 32 | u64::from(first)
}
