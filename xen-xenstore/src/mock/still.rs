//! A kernel with nothing to stop.

use xen_hypercall::RestoreError;

use crate::suspend::Kernel;

/// A kernel that is suspended in a test: there is one thread, nobody to stop, and nothing that it has told Xen by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Still;

impl Kernel for Still {
    fn stand_still(&self, suspend: &mut dyn FnMut()) {
        suspend();
    }

    fn renew(&self) -> Result<(), RestoreError> {
        Ok(())
    }

    fn lost(&self, why: RestoreError) -> ! {
        panic!("the resumed domain must end: {why}")
    }
}
