//! Event channels among the parts of a kernel that are set up again after a resume.

use xen_hypercall::{Errno, Platform, Restore, RestoreError};

use crate::{Channel, Error, EventChannels};

impl From<Error> for RestoreError {
    fn from(error: Error) -> Self {
        let (operation, errno) = match error {
            Error::Hypercall { operation, errno } => (operation, errno),
            Error::OutOfMemory => ("memory for event channels", Errno::ENOMEM),
            Error::Busy => ("event channels, which somebody else sets up,", Errno::EBUSY),
            _ => ("event channels, which are stale,", Errno::EINVAL),
        };
        Self { operation, errno }
    }
}

/// By [`EventChannels::resume`].
impl<P: Platform> Restore for &EventChannels<P> {
    fn restore(&mut self) -> Result<(), RestoreError> {
        Ok(self.resume()?)
    }
}

/// By [`Channel::rebind`]: for a VIRQ or an IPI, after the event channels.
impl<P: Platform> Restore for &Channel<'_, P> {
    fn restore(&mut self) -> Result<(), RestoreError> {
        Ok(self.rebind()?)
    }
}
