//! What became of a connection that was made.

use super::XenbusState;

/// What has become of a device that was connected: see [`Frontend::change`](super::Frontend::change).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum BackendChange {
    /// Nothing was written since the last look.
    Same,
    /// The connection is there, and the backend has written its state again. That is how it tells that something about the
    /// device has changed: [`Connected`](XenbusState::CONNECTED) for a disk's new size, and
    /// [`Reconfiguring`](XenbusState::RECONFIGURING), [`Reconfigured`](XenbusState::RECONFIGURED).
    Told(XenbusState),
    /// The backend wants the device to end. What is under way may still be finished.
    Closing,
    /// The backend has ended the connection.
    Closed,
    /// The backend has ended the connection and begun anew, or the toolstack has made the device anew. It is to be opened again.
    Restarted,
    /// The device was taken away, or its backend's directory cannot be read any more.
    Gone,
}

impl BackendChange {
    /// Whether the connection has ended, or is to end.
    pub const fn is_over(self) -> bool {
        !matches!(self, Self::Same | Self::Told(_))
    }

    /// What a backend's state means to a device that was connected. A level that has gone through `Closed` may be anywhere.
    pub(crate) const fn of(backend: XenbusState) -> Self {
        match backend {
            XenbusState::CONNECTED | XenbusState::RECONFIGURING | XenbusState::RECONFIGURED => {
                Self::Told(backend)
            }
            XenbusState::CLOSING => Self::Closing,
            XenbusState::CLOSED => Self::Closed,
            XenbusState::INITIALISING | XenbusState::INIT_WAIT | XenbusState::INITIALISED => Self::Restarted,
            _ => Self::Gone,
        }
    }
}
