//! What a device is in every state of its handshake.

use core::cell::Cell;

use xen_hypercall::DomId;

use super::{BackendChange, XenbusState};
use crate::nodes::parse;
use crate::{Error, Path, Watch};

/// A device and its watch, whatever state it is in.
pub(crate) struct Device {
    pub(crate) frontend: Path,
    pub(crate) backend: Path,
    pub(crate) backend_id: DomId,
    pub(crate) index: u32,
    pub(crate) watch: Watch,
    /// The backend's state, and how many events of the watch had come before it was read: without another it is still so.
    pub(crate) seen: Option<(XenbusState, u32)>,
    /// What our state node says while the device is ours. Two of them, for it is not known whether a write that was not answered
    /// was done.
    pub(crate) ours: Cell<[XenbusState; 2]>,
    /// What became of the connection: an end stays one.
    pub(crate) change: Cell<BackendChange>,
}

/// Whose a device's directory is.
pub(crate) enum Owner {
    /// Ours, and our state is this.
    Us(XenbusState),
    /// It is there, for a device that is made anew.
    Another,
    /// It is not there.
    Nobody,
}

/// What a node says of a side. One that is not there, may not be read, or makes no sense, says that the side is not there.
pub(crate) fn state_of(answer: Result<&[u8], Error>) -> Result<XenbusState, Error> {
    match answer.and_then(parse) {
        Err(Error::BadValue | Error::NotText) => Ok(XenbusState::UNKNOWN),
        Err(error) if error.is_absent() => Ok(XenbusState::UNKNOWN),
        state => state,
    }
}

impl Device {
    /// Whose the device is, by what our own state node says.
    pub(crate) fn owner(&self, answer: Result<&[u8], Error>) -> Result<Owner, Error> {
        let ours = self.ours.get();
        match answer.and_then(parse) {
            Ok(state) if ours.contains(&state) => Ok(Owner::Us(state)),
            Ok(_) => Ok(Owner::Another),
            // No toolstack begins a device so.
            Err(Error::BadValue | Error::NotText) => Ok(Owner::Us(ours[1])),
            Err(error) if error.is_absent() => Ok(Owner::Nobody),
            Err(error) => Err(error),
        }
    }
}
