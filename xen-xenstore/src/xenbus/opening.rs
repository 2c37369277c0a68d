//! The first steps of a handshake, for who blocks: the device is found, and begins, whatever an earlier kernel left behind.

use xen_hypercall::{Platform, Wait};

use super::frontend::{BackendReady, Frontend, Initialising};
use crate::way::blocking::frontend;
use crate::{Blocking, Error, Until, Xenstore};

impl Frontend<Initialising> {
    /// Finds device `index` of `kind` (`vif`, `vbd`, ...) and its backend, and begins the handshake, whatever an
    /// earlier kernel of this domain left behind.
    ///
    /// The toolstack may still be writing the device's nodes: they are waited for until `deadline`. So is a backend
    /// that still works for that earlier kernel, and has to let go first.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such device by then; [`Error::BadValue`] when its nodes make no sense;
    /// [`Error::BackendGone`] when it is taken away meanwhile.
    pub fn open<'d, P: Platform + Wait>(
        xs: &mut Xenstore<'_, P>,
        kind: &str,
        index: u32,
        deadline: impl Into<Until<'d>>,
    ) -> Result<Self, Error> {
        frontend::open(&mut Blocking::until(xs, deadline), kind, index)
    }

    /// Like [`open`](Self::open) for a device that is there, as those are that the domain was made with: one whose nodes are
    /// not there is not waited for.
    ///
    /// # Errors
    /// As [`open`](Self::open), at once.
    pub fn open_present<'d, P: Platform + Wait>(
        xs: &mut Xenstore<'_, P>,
        kind: &str,
        index: u32,
        deadline: impl Into<Until<'d>>,
    ) -> Result<Self, Error> {
        frontend::open_present(&mut Blocking::until(xs, deadline), kind, index)
    }

    /// Waits until the backend has told what it can do.
    ///
    /// A backend that is still closing after an earlier kernel is waited for: it begins anew when it sees us begin. So is one
    /// whose directory is not there yet, or may not be read yet.
    ///
    /// # Errors
    /// [`Error::BackendTimedOut`] with the state it was in at `deadline`.
    pub fn wait_for_backend<'d, P: Platform + Wait>(
        self,
        xs: &mut Xenstore<'_, P>,
        deadline: impl Into<Until<'d>>,
    ) -> Result<Frontend<BackendReady>, Error> {
        frontend::wait_for_backend(self, &mut Blocking::until(xs, deadline))
    }
}
