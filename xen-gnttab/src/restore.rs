//! The grant table among the parts of a kernel that are set up again after a resume.

use xen_hypercall::{Errno, Platform, Restore, RestoreError};

use crate::{Error, GrantTable};

impl From<Error> for RestoreError {
    fn from(error: Error) -> Self {
        let (operation, errno) = match error {
            Error::Hypercall { operation, errno } => (operation, errno),
            Error::Version(_) => ("GNTTABOP_set_version", Errno::ENOSYS),
            Error::Growing => ("the grant table, which somebody else sets up,", Errno::EBUSY),
            Error::OutOfMemory | Error::NoFreeReference => ("memory for grants", Errno::ENOMEM),
            _ => ("the grant table", Errno::EINVAL),
        };
        Self { operation, errno }
    }
}

/// By [`GrantTable::resume`].
impl<P: Platform> Restore for &GrantTable<P> {
    fn restore(&mut self) -> Result<(), RestoreError> {
        Ok(self.resume()?)
    }
}
