//! The frontend's side of the handshake, with how far it is in its type.

use core::fmt;
use core::marker::PhantomData;
use core::str::FromStr;

use xen_hypercall::{DomId, Platform, Wait};

use super::device::Device;
use super::{BackendChange, Entry, XenbusState};
use crate::conversation::Changes;
use crate::nodes::optional;
use crate::{Ask, Blocking, Error, Path, Transaction, Until, Watch, Xenstore, block_on};

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
    pub(super) device: Device,
    pub(super) _state: PhantomData<S>,
}

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
        let entered = Entry::new(&self.device, next).and_then(|entry| {
            let entered = xs.transact(&entry, &mut |transaction| f(transaction, &self.device.frontend));
            entry.conclude(entered)
        });
        block_on(self.published(&mut Blocking::new(xs), entered))
    }

    /// [`publish`](Self::publish) for whoever asks. `f` writes the same each time it runs.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub async fn publish_async<A: Ask>(
        self,
        ask: &mut A,
        next: XenbusState,
        mut f: impl FnMut(&mut Changes<'_>, &Path) -> Result<(), Error>,
    ) -> Result<Frontend<Published>, Error> {
        let device = &self.device;
        let entered = device.enter(ask, next, &mut |changes| f(changes, &device.frontend)).await;
        self.published(ask, entered).await
    }

    /// What became of it.
    async fn published<A: Ask>(
        self,
        ask: &mut A,
        entered: Result<bool, Error>,
    ) -> Result<Frontend<Published>, Error> {
        let published = match entered {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::BackendGone(XenbusState::UNKNOWN)),
            Err(error) => {
                // The backend must not begin to use what the driver is about to take away.
                let _ = self.device.switch(ask, XenbusState::CLOSED).await;
                Err(error)
            }
        };
        self.go_on(ask, published).await
    }
}

impl Frontend<Published> {
    /// Whether [`wait_connected`](Frontend::wait_connected) has nothing to wait for any more: the backend is connected, or closes instead.
    /// For who does something else meanwhile. Asks xenstore only if something has happened.
    ///
    /// # Errors
    /// When xenstore cannot be asked.
    pub fn is_decided<P: Platform + Wait>(&mut self, xs: &mut Xenstore<'_, P>) -> Result<bool, Error> {
        block_on(self.is_decided_async(&mut Blocking::new(xs)))
    }

    /// [`is_decided`](Self::is_decided) for whoever asks.
    ///
    /// # Errors
    /// As [`is_decided`](Self::is_decided).
    pub async fn is_decided_async<A: Ask>(&mut self, ask: &mut A) -> Result<bool, Error> {
        let state = self.device.see(ask).await?;
        Ok(state == XenbusState::CONNECTED || state.is_gone())
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
        block_on(self.wait_connected_async(&mut Blocking::until(xs, deadline.into())))
    }

    /// [`wait_connected`](Self::wait_connected) for whoever asks.
    ///
    /// # Errors
    /// As [`wait_connected`](Self::wait_connected).
    pub async fn wait_connected_async<A: Ask>(mut self, ask: &mut A) -> Result<Frontend<Connected>, Error> {
        let mut decide = |state| match state {
            XenbusState::CONNECTED => Some(Ok(())),
            state if state.is_gone() => Some(Err(Error::BackendGone(state))),
            _ => None,
        };
        let waited = self.device.wait_for(ask, None, &mut decide).await;
        if waited.is_err() {
            // The backend must not begin to use what the driver is about to take away.
            let _ = self.device.switch(ask, XenbusState::CLOSED).await;
        }
        self.go_on(ask, waited).await
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
        block_on(self.change_async(&mut Blocking::new(xs)))
    }

    /// [`change`](Self::change) for whoever asks.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    pub async fn change_async<A: Ask>(&self, ask: &mut A) -> Result<BackendChange, Error> {
        let known = match self.device.change.get() {
            // The end may be near, or here.
            change @ (BackendChange::Same | BackendChange::Closing) => change,
            ended => return Ok(ended),
        };
        if !ask.has_fired(self.device.watch)?
            || self.device.seen.is_some_and(|(_, at)| at == ask.events(self.device.watch))
        {
            // That event came before the handshake looked last.
            return Ok(known);
        }
        self.change_by_asking_async(ask).await
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
        block_on(self.change_by_asking_async(&mut Blocking::new(xs)))
    }

    /// [`change_by_asking`](Self::change_by_asking) for whoever asks.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    pub async fn change_by_asking_async<A: Ask>(&self, ask: &mut A) -> Result<BackendChange, Error> {
        let known = match self.device.change.get() {
            change @ (BackendChange::Same | BackendChange::Closing) => change,
            ended => return Ok(ended),
        };
        let looked = self.device.look(ask).await;
        match looked {
            Err(_) => ask.mark(self.device.watch),
            Ok(change) if change.is_over() => self.device.change.set(change),
            Ok(_) if known == BackendChange::Closing => return Ok(known),
            Ok(_) => {}
        }
        looked
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
        block_on(self.close_async(&mut Blocking::until(xs, deadline.into())))
    }

    /// [`close`](Self::close) for whoever asks.
    ///
    /// # Errors
    /// As [`close`](Self::close).
    pub async fn close_async<A: Ask>(mut self, ask: &mut A) -> Result<(), Error> {
        let closed = self.device.end(ask).await;
        // If that fails the watch is ended later.
        let _ = ask.end_watch(self.device.watch).await;
        closed
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
        block_on(self.backend_state_async(&mut Blocking::new(xs)))
    }

    /// [`backend_state`](Self::backend_state) for whoever asks.
    ///
    /// # Errors
    /// As [`backend_state`](Self::backend_state).
    pub async fn backend_state_async<A: Ask>(&self, ask: &mut A) -> Result<XenbusState, Error> {
        self.device.backend_state(ask).await
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
        block_on(self.switch_async(&mut Blocking::new(xs), state))
    }

    /// [`switch`](Self::switch) for whoever asks.
    ///
    /// # Errors
    /// As [`switch`](Self::switch).
    pub async fn switch_async<A: Ask>(&self, ask: &mut A, state: XenbusState) -> Result<bool, Error> {
        self.device.switch(ask, state).await
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

    /// [`read_backend`](Self::read_backend) for whoever asks.
    ///
    /// # Errors
    /// As [`read_backend`](Self::read_backend).
    pub async fn read_backend_async<A: Ask, T: FromStr>(
        &self,
        ask: &mut A,
        key: &str,
    ) -> Result<Option<T>, Error> {
        ask.read_optional(&self.device.backend.join(key)?).await
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

    /// [`read_frontend`](Self::read_frontend) for whoever asks.
    ///
    /// # Errors
    /// As [`read_frontend`](Self::read_frontend).
    pub async fn read_frontend_async<A: Ask, T: FromStr>(
        &self,
        ask: &mut A,
        key: &str,
    ) -> Result<Option<T>, Error> {
        ask.read_optional(&self.device.frontend.join(key)?).await
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

    /// [`read_backend_all`](Self::read_backend_all) for whoever asks.
    ///
    /// # Errors
    /// As [`Xenstore::read_all`].
    pub async fn read_backend_all_async<A: Ask, T: FromStr, const N: usize>(
        &self,
        ask: &mut A,
        keys: [&str; N],
    ) -> Result<[Result<Option<T>, Error>; N], Error> {
        Ok(ask.read_all(&self.device.backend, keys).await?.map(optional))
    }

    /// Gives a device up without a handshake; its watch ends.
    ///
    /// # Errors
    /// When xenstore cannot be asked, or refuses.
    pub fn abandon<P: Platform + Wait>(self, xs: &mut Xenstore<'_, P>) -> Result<(), Error> {
        block_on(self.abandon_async(&mut Blocking::new(xs)))
    }

    /// [`abandon`](Self::abandon) for whoever asks.
    ///
    /// # Errors
    /// As [`abandon`](Self::abandon).
    pub async fn abandon_async<A: Ask>(self, ask: &mut A) -> Result<(), Error> {
        let switched = self.device.switch(ask, XenbusState::CLOSED).await;
        // If that fails the watch is ended later.
        let _ = ask.end_watch(self.device.watch).await;
        switched.map(drop)
    }

    /// Gives a device up that was of the domain before the last resume: its watch ends, and nothing is written, for the directory
    /// of that name is another device's.
    ///
    /// # Errors
    /// [`Error::Broken`] when the connection to xenstore is of no use any more.
    pub fn forget<P: Platform + Wait>(self, xs: &mut Xenstore<'_, P>) -> Result<(), Error> {
        self.forget_by(&mut Blocking::new(xs))
    }

    /// [`forget`](Self::forget) for whoever asks.
    ///
    /// # Errors
    /// As [`forget`](Self::forget).
    pub fn forget_by<A: Ask>(self, ask: &mut A) -> Result<(), Error> {
        // Nobody waits for the daemon to end it.
        ask.drop_watch(self.device.watch);
        ask.look()
    }

    /// The device in its next state, or its end.
    pub(super) async fn go_on<A: Ask, T>(
        self,
        ask: &mut A,
        result: Result<(), Error>,
    ) -> Result<Frontend<T>, Error> {
        if let Err(error) = result {
            // The first error says more than one about the watch.
            let _ = ask.end_watch(self.device.watch).await;
            return Err(error);
        }
        Ok(Frontend { device: self.device, _state: PhantomData })
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
