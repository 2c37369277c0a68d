//! Which portions of the references a sweep has to look at: a mark for each, apart from where the marks live, so that the same
//! code runs on loom's model of memory.
#![allow(unreachable_pub, reason = "public for the loom tests alone")]

/// The mark of one portion.
pub trait Mark {
    /// Sets it. What was done before is visible to whoever takes it away.
    fn set(&self);
    /// Takes it away; whether there was one. What was done before it was set is visible afterwards.
    fn take(&self) -> bool;
}

/// Puts something into a portion. The mark comes after it: a sweep that misses it leaves the mark for the next one.
pub fn put(mark: &impl Mark, put: impl FnOnce()) {
    put();
    mark.set();
}

/// Looks at a portion that is marked. The mark goes before the look: what comes after the look has a mark again.
pub fn sweep<R>(mark: &impl Mark, look: impl FnOnce() -> R) -> Option<R> {
    mark.take().then(look)
}
