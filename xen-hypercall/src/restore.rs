//! What a kernel has set up with Xen, and sets up again after a resume in a new domain.

use core::fmt;

use crate::Errno;

/// A part of a kernel that has set something up with Xen for as long as the domain lives: event channels, grants, the
/// console. When the domain is resumed in a new one Xen knows nothing of that, and the part sets it up again.
///
/// The coordinator of `xen-xenstore` calls this for all parts, in order. A kernel implements it for what it has set up by
/// itself.
pub trait Restore {
    /// The domain is about to be suspended: the last call before. What was queued for others is shown to them.
    ///
    /// # Errors
    /// A reason not to suspend: all goes on as it was.
    fn prepare(&mut self) -> Result<(), RestoreError> {
        Ok(())
    }

    /// Sets everything up again, in a new domain. Called on vCPU 0 while nobody else runs, with interrupts off: it makes
    /// hypercalls and waits for nothing.
    ///
    /// # Errors
    /// What Xen refused. The part is of no use then.
    fn restore(&mut self) -> Result<(), RestoreError>;

    /// The domain goes on where it was: nothing is lost. Events that came while nobody ran may have been missed, by the other
    /// sides too.
    fn go_on(&mut self) {}
}

/// Why a part cannot be [restored](Restore), or lets nobody suspend the domain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RestoreError {
    /// What was refused: a hypercall, or what a part says of itself.
    pub operation: &'static str,
    /// Why.
    pub errno: Errno,
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {}", self.operation, self.errno)
    }
}

impl core::error::Error for RestoreError {}

impl<T: Restore + ?Sized> Restore for &mut T {
    fn prepare(&mut self) -> Result<(), RestoreError> {
        (**self).prepare()
    }

    fn restore(&mut self) -> Result<(), RestoreError> {
        (**self).restore()
    }

    fn go_on(&mut self) {
        (**self).go_on();
    }
}
