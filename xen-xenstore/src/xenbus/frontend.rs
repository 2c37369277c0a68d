//! The frontend's side of the handshake, with how far it is in its type.

use core::fmt;
use core::marker::PhantomData;
use core::str::FromStr;

use xen_hypercall::{DomId, Platform, Wait};

use super::device::Device;
use super::{BackendChange, Entry, XenbusState};
use crate::nodes::optional;
use crate::way::blocking::frontend;
use crate::{Blocking, Error, Path, Transaction, Until, Watch, Xenstore};

/// The device is known; its backend may not be ready.
#[derive(Debug)]
pub enum Initialising {}
/// The backend has told what it can do.
#[derive(Debug)]
pub enum BackendReady {}
/// The backend was told what it needs to connect.
#[derive(Debug)]
pub enum Published {}
/// Both sides are at work.
#[derive(Debug)]
pub enum Connected {}

/// A device as its frontend sees it, in state `S`. Each step of the handshake takes it and returns it in the next
/// state, so a device that is not connected cannot be used as one that is.
///
/// It borrows nothing: each call takes the connection to xenstore. A step that fails takes the device with it, and
/// ends its watch; [`open`](Frontend::open) begins again.
///
/// The device's directory may be taken away at any time, or made anew for a device that is no longer this one. So its nodes are
/// written in a transaction that has found our own state there as we left it, and not otherwise.
pub struct Frontend<S> {
    pub(crate) device: Device,
    pub(crate) _state: PhantomData<S>,
}

/// Writes what a backend needs.
type Publish<'f, 'x, P> = dyn FnMut(&mut Transaction<'_, 'x, P>, &Path) -> Result<(), Error> + 'f;

impl Frontend<BackendReady> {
    /// Tells the backend what it needs, and goes to state `next`, all in one transaction. `f` gets the transaction
    /// and the device's directory; it may run more than once. When it comes to nothing the device is Closed: the backend may have
    /// been told although nobody said so.
    ///
    /// # Errors
    /// What `f` returns, or the transaction; [`Error::BackendGone`] when the device was taken away, and nothing is written then.
    pub fn publish<'x, P: Platform + Wait>(
        self,
        xs: &mut Xenstore<'x, P>,
        next: XenbusState,
        mut f: impl FnMut(&mut Transaction<'_, 'x, P>, &Path) -> Result<(), Error>,
    ) -> Result<Frontend<Published>, Error> {
        self.publish_by(xs, next, &mut f)
    }

    #[inline(never)]
    fn publish_by<'x, P: Platform + Wait>(
        self,
        xs: &mut Xenstore<'x, P>,
        next: XenbusState,
        f: &mut Publish<'_, 'x, P>,
    ) -> Result<Frontend<Published>, Error> {
        let entered = Entry::new(&self.device, next).and_then(|entry| {
            let entered = xs.transact(&entry, &mut |transaction| f(transaction, &self.device.frontend));
            entry.conclude(entered)
        });
        frontend::published(self.device, &mut Blocking::new(xs), entered)
    }
}

impl Frontend<Published> {
    /// Whether [`wait_connected`](Frontend::wait_connected) has nothing to wait for any more: the backend is connected, or closes instead.
    /// For who does something else meanwhile. Asks xenstore only if something has happened.
    ///
    /// # Errors
    /// When xenstore cannot be asked.
    pub fn is_decided<P: Platform + Wait>(&mut self, xs: &mut Xenstore<'_, P>) -> Result<bool, Error> {
        frontend::is_decided(self, &mut Blocking::new(xs))
    }

    /// Waits until the backend is connected. Our own state is to be [switched](Frontend::switch) to Connected
    /// by the driver, before or after, as its protocol wants. When it comes to nothing the device is Closed.
    ///
    /// # Errors
    /// [`Error::BackendGone`] when it closes instead; [`Error::BackendTimedOut`] with the state it was in at
    /// `deadline`.
    pub fn wait_connected<'d, P: Platform + Wait>(
        self,
        xs: &mut Xenstore<'_, P>,
        deadline: impl Into<Until<'d>>,
    ) -> Result<Frontend<Connected>, Error> {
        frontend::wait_connected(self, &mut Blocking::until(xs, deadline))
    }
}

impl Frontend<Connected> {
    /// What has become of the device since the handshake, or since the last call. Asks xenstore only if something has happened.
    /// Once the connection has ended it stays so, whatever the backend does next.
    ///
    /// A backend that has closed, and is back in one of its first states when the guest looks, has
    /// [restarted](BackendChange::Restarted). So has a device whose own nodes are no longer as this frontend left them: the
    /// toolstack made it anew. What cannot be noticed is a backend that closed and connected to the same rings again
    /// between two looks: nothing in xenstore tells the two connections apart.
    ///
    /// # Errors
    /// [`Error::Broken`] when the connection to xenstore is of no use any more; otherwise when it cannot be asked,
    /// and the next call asks again.
    pub fn change<P: Platform + Wait>(&self, xs: &mut Xenstore<'_, P>) -> Result<BackendChange, Error> {
        frontend::change(self, &mut Blocking::new(xs))
    }

    /// As [`change`](Self::change), but asks xenstore in any case: before an end that no event can announce any more, such as that
    /// of the domain's connection to xenstore.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    pub fn change_by_asking<P: Platform + Wait>(
        &self,
        xs: &mut Xenstore<'_, P>,
    ) -> Result<BackendChange, Error> {
        frontend::change_by_asking(self, &mut Blocking::new(xs))
    }

    /// Whether the connection has ended, or is to end: [`change`](Self::change) says how.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    pub fn is_closing<P: Platform + Wait>(&self, xs: &mut Xenstore<'_, P>) -> Result<bool, Error> {
        Ok(self.change(xs)?.is_over())
    }

    /// Ends the device: tells the backend, waits until it has let go, and is closed.
    ///
    /// The device is closed as far as we are concerned even when the backend does not follow. One that was taken away is
    /// closed already.
    ///
    /// # Errors
    /// [`Error::BackendTimedOut`] with the state the backend was in at `deadline`; otherwise when xenstore cannot be asked.
    pub fn close<'d, P: Platform + Wait>(
        self,
        xs: &mut Xenstore<'_, P>,
        deadline: impl Into<Until<'d>>,
    ) -> Result<(), Error> {
        frontend::close(self, &mut Blocking::until(xs, deadline))
    }
}

impl<S> Frontend<S> {
    /// The device's directory, below this domain's own.
    pub fn frontend_path(&self) -> &Path {
        &self.device.frontend
    }

    /// The backend's directory for this device.
    pub fn backend_path(&self) -> &Path {
        &self.device.backend
    }

    /// The domain that the backend is in.
    pub fn backend_id(&self) -> DomId {
        self.device.backend_id
    }

    /// The device's number.
    pub fn index(&self) -> u32 {
        self.device.index
    }

    /// The watch on the backend's state.
    pub fn watch(&self) -> &Watch {
        &self.device.watch
    }

    /// The backend's state; [`XenbusState::UNKNOWN`] when there is none, or it is no number.
    ///
    /// # Errors
    /// When xenstore cannot be asked.
    pub fn backend_state<P: Platform + Wait>(&self, xs: &mut Xenstore<'_, P>) -> Result<XenbusState, Error> {
        frontend::backend_state(self, &mut Blocking::new(xs))
    }

    /// Sets our own state. Returns `false`, and writes nothing, when the device is not ours any more: it was taken away, or made
    /// anew.
    ///
    /// # Errors
    /// When xenstore cannot be asked, or refuses.
    pub fn switch<P: Platform + Wait>(
        &self,
        xs: &mut Xenstore<'_, P>,
        state: XenbusState,
    ) -> Result<bool, Error> {
        frontend::switch(self, &mut Blocking::new(xs), state)
    }

    /// A value of the backend's; none when there is no such node.
    ///
    /// # Errors
    /// [`Error::BadValue`] when it is not what it should be.
    pub fn read_backend<P: Platform + Wait, T: FromStr>(
        &self,
        xs: &mut Xenstore<'_, P>,
        key: &str,
    ) -> Result<Option<T>, Error> {
        xs.read_optional(&self.device.backend.join(key)?)
    }

    /// A value of the device's own directory; none when there is no such node.
    ///
    /// # Errors
    /// [`Error::BadValue`] when it is not what it should be.
    pub fn read_frontend<P: Platform + Wait, T: FromStr>(
        &self,
        xs: &mut Xenstore<'_, P>,
        key: &str,
    ) -> Result<Option<T>, Error> {
        xs.read_optional(&self.device.frontend.join(key)?)
    }

    /// Several values of the backend's at once, as [`Xenstore::read_all`]; none for a node that is not there.
    ///
    /// # Errors
    /// As [`Xenstore::read_all`].
    pub fn read_backend_all<P: Platform + Wait, T: FromStr, const N: usize>(
        &self,
        xs: &mut Xenstore<'_, P>,
        keys: [&str; N],
    ) -> Result<[Result<Option<T>, Error>; N], Error> {
        Ok(xs.read_all(&self.device.backend, keys)?.map(optional))
    }

    /// Gives a device up without a handshake; its watch ends.
    ///
    /// # Errors
    /// When xenstore cannot be asked, or refuses.
    pub fn abandon<P: Platform + Wait>(self, xs: &mut Xenstore<'_, P>) -> Result<(), Error> {
        frontend::abandon(self, &mut Blocking::new(xs))
    }

    /// Gives a device up that was of the domain before the last resume: its watch ends, and nothing is written, for the directory
    /// of that name is another device's.
    ///
    /// # Errors
    /// [`Error::Broken`] when the connection to xenstore is of no use any more.
    pub fn forget<P: Platform + Wait>(self, xs: &mut Xenstore<'_, P>) -> Result<(), Error> {
        frontend::forget(self, &mut Blocking::new(xs))
    }
}

impl<S> fmt::Debug for Frontend<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frontend")
            .field("frontend", &self.device.frontend)
            .field("backend", &self.device.backend)
            .field("backend_id", &self.device.backend_id)
            .finish_non_exhaustive()
    }
}
