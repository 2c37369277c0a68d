//! A device goes to a state of ours, unless it is not ours any more.
#![allow(unreachable_pub, reason = "public in name alone, for a public trait")]

use core::cell::Cell;
use core::fmt;

use super::XenbusState;
use super::device::{Device, Owner};
use crate::transaction::note;
use crate::{Error, Path};

/// What is asked and found out in the transaction that enters a state. Whose the device is is asked together with what is
/// written: if it is another's, that comes to nothing.
pub struct Entry<'d> {
    device: &'d Device,
    state: Path,
    backend: Path,
    next: XenbusState,
    /// As long as we have told the backend nothing, a device that was made anew may be in the same state, with another backend.
    begins: bool,
    /// Owner and backend, as far as they were told.
    owner: Cell<Option<Result<Owner, Error>>>,
    has_backend: Cell<Option<Result<bool, Error>>>,
    lost: Cell<bool>,
    /// Why the transaction comes to nothing.
    pub(crate) failed: Cell<Option<Error>>,
}

impl<'d> Entry<'d> {
    pub(crate) fn new(device: &'d Device, next: XenbusState) -> Result<Self, Error> {
        Ok(Self {
            device,
            state: device.frontend.join("state")?,
            backend: device.frontend.join("backend")?,
            next,
            begins: next == XenbusState::INITIALISING
                || device.ours.get().contains(&XenbusState::INITIALISING),
            owner: Cell::new(None),
            has_backend: Cell::new(None),
            lost: Cell::new(false),
            failed: Cell::new(None),
        })
    }

    /// The transaction begins, perhaps again. Returns what is looked at in it, by their tags.
    pub(crate) fn begin(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lost.set(false);
        if !self.begins {
            self.has_backend.set(Some(Ok(true)));
        }
        [(1, &self.state), (2, &self.backend)]
            .into_iter()
            .take(if self.begins { 2 } else { 1 })
            .map(|(tag, path)| (tag, &**path))
    }

    /// The node of our state, and its value.
    pub(crate) fn next(&self) -> (&str, XenbusState) {
        (&self.state, self.next)
    }

    /// An answer of the transaction: to a change, or to a look.
    pub(crate) fn note(&self, tag: usize, answer: Result<&[u8], Error>) {
        match tag {
            0 => note(&self.failed, answer),
            1 => self.owner.set(Some(self.device.owner(answer))),
            _ => self.has_backend.set(Some(match answer {
                Ok(backend) => Ok(backend == self.device.backend.as_bytes()),
                Err(error) if error.is_absent() => Ok(false),
                Err(error) => Err(error),
            })),
        }
    }

    /// All is written and looked at, or it was tried. Whether the transaction is to succeed.
    pub(crate) fn decide(&self, written: Result<(), Error>) -> Result<(), Error> {
        let (Some(owner), Some(has_backend)) = (self.owner.take(), self.has_backend.take()) else {
            return written;
        };
        if let Owner::Us(found) = owner? {
            self.device.ours.set([found, self.next]);
        } else if self.next != XenbusState::INITIALISING {
            self.lost.set(true);
        }
        // Or it is about to be ours.
        if !has_backend? {
            self.lost.set(true);
        }
        if self.lost.get() { Err(Error::BackendGone(XenbusState::UNKNOWN)) } else { written }
    }

    /// What became of the transaction: whether the state was entered.
    pub(crate) fn conclude(&self, entered: Result<(), Error>) -> Result<bool, Error> {
        match entered {
            Err(_) if self.lost.get() => Ok(false),
            entered => {
                entered?;
                self.device.ours.set([self.next; 2]);
                Ok(true)
            }
        }
    }
}

impl fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("next", &self.next).finish_non_exhaustive()
    }
}
