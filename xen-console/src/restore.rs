//! The console among the parts of a kernel that are set up again after a resume.

use xen_hypercall::{Platform, Restore, RestoreError, SpecialPages};

use crate::Console;

/// By [`Console::resume`]. A console that cannot be set up again stays [`Error::Stale`](crate::Error::Stale), which is no reason to
/// end the domain.
impl<P: Platform + SpecialPages> Restore for Console<'_, P> {
    fn prepare(&mut self) -> Result<(), RestoreError> {
        let _ = self.announce();
        Ok(())
    }

    fn restore(&mut self) -> Result<(), RestoreError> {
        let _ = self.resume();
        Ok(())
    }

    fn go_on(&mut self) {
        // An event may have been missed, by the daemon too. Whatever is wrong the next call says.
        if self.channel().notify().is_ok() {
            self.looked(0);
        }
    }
}
