//! The frontend's side of the handshake, with how far it is in its type.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::str::FromStr;

use xen_evtchn::Deadline;
use xen_hypercall::{DomId, Platform, Wait};

use super::{BackendChange, XenbusState};
use crate::nodes::{optional, parse};
use crate::{Error, Path, Transaction, Until, Watch, Xenstore};

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
    pub(super) frontend: Path,
    pub(super) backend: Path,
    pub(super) backend_id: DomId,
    pub(super) index: u32,
    pub(super) watch: Watch,
    /// The backend's state, and how many events of the watch had come before it was read: without another it is still so.
    pub(super) seen: Option<(XenbusState, u32)>,
    /// What our state node says while the device is ours. Two of them, for it is not known whether a write that was not answered
    /// was done.
    pub(super) ours: Cell<[XenbusState; 2]>,
    /// What became of the connection: an end stays one.
    pub(super) change: Cell<BackendChange>,
    pub(super) _state: PhantomData<S>,
}

/// Whose a device's directory is.
enum Owner {
    /// Ours, and our state is this.
    Us(XenbusState),
    /// It is there, for a device that is made anew.
    Another,
    /// It is not there.
    Nobody,
}

/// What a node says of a side. One that is not there, may not be read, or makes no sense, says that the side is not there.
pub(super) fn state_of(answer: Result<&[u8], Error>) -> Result<XenbusState, Error> {
    match answer.and_then(parse) {
        Err(Error::BadValue | Error::NotText) => Ok(XenbusState::UNKNOWN),
        Err(error) if error.is_absent() => Ok(XenbusState::UNKNOWN),
        state => state,
    }
}

impl Frontend<BackendReady> {
    /// Tells the backend what it needs, and goes to state `next`, all in one transaction. `f` gets the transaction
    /// and the device's directory; it may run more than once.
    ///
    /// # Errors
    /// What `f` returns, or the transaction; [`Error::BackendGone`] when the device was taken away, and nothing is written then.
    pub fn publish<'x, P: Platform + Wait>(
        self,
        xs: &mut Xenstore<'x, P>,
        next: XenbusState,
        mut f: impl FnMut(&mut Transaction<'_, 'x, P>, &Path) -> Result<(), Error>,
    ) -> Result<Frontend<Published>, Error> {
        let published = match self.enter(xs, next, &mut |transaction| f(transaction, &self.frontend)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::BackendGone(XenbusState::UNKNOWN)),
            Err(error) => Err(error),
        };
        self.go_on(xs, published)
    }
}

impl Frontend<Published> {
    /// Waits until the backend is connected. Our own state is to be [switched](Frontend::switch) to Connected
    /// by the driver, before or after, as its protocol wants. When it comes to nothing the device is Closed.
    ///
    /// # Errors
    /// [`Error::BackendGone`] when it closes instead; [`Error::BackendTimedOut`] with the state it was in at
    /// `deadline`.
    pub fn wait_connected<'d, P: Platform + Wait>(
        mut self,
        xs: &mut Xenstore<'_, P>,
        deadline: impl Into<Until<'d>>,
    ) -> Result<Frontend<Connected>, Error> {
        let waited = self.wait_for(xs, deadline.into().deadline(), |state| match state {
            XenbusState::CONNECTED => Some(Ok(())),
            state if state.is_gone() => Some(Err(Error::BackendGone(state))),
            _ => None,
        });
        if waited.is_err() {
            // The backend must not begin to use what the driver is about to take away.
            let _ = self.switch(xs, XenbusState::CLOSED);
        }
        self.go_on(xs, waited)
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
        let known = match self.change.get() {
            // The end may be near, or here.
            change @ (BackendChange::Same | BackendChange::Closing) => change,
            ended => return Ok(ended),
        };
        if !xs.fired(&self.watch)?
            || self.seen.is_some_and(|(_, at)| at == xs.link.watches.events(self.watch))
        {
            // That event came before the handshake looked last.
            return Ok(known);
        }
        let looked = self.look(xs);
        match looked {
            Err(_) => xs.link.watches.mark(self.watch),
            Ok(change) if change.is_over() => self.change.set(change),
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

    /// Looks at both sides at once.
    fn look<P: Platform + Wait>(&self, xs: &mut Xenstore<'_, P>) -> Result<BackendChange, Error> {
        let (mut theirs, mut owner) = (Ok(XenbusState::UNKNOWN), Ok(Owner::Nobody));
        xs.together(
            |ask| {
                ask.read(0, &self.backend, "state")?;
                ask.read(1, &self.frontend, "state")
            },
            |tag, answer| match tag {
                0 => theirs = state_of(answer),
                _ => owner = self.owner(answer),
            },
        )?;
        let theirs = theirs?;
        Ok(match owner? {
            Owner::Us(_) => BackendChange::of(theirs),
            Owner::Nobody => BackendChange::Gone,
            Owner::Another => BackendChange::Restarted,
        })
    }

    /// Ends the device: tells the backend, waits until it has let go, and is closed.
    ///
    /// The device is closed as far as we are concerned even when the backend does not follow. One that was taken away is
    /// closed already.
    ///
    /// # Errors
    /// [`Error::BackendTimedOut`] with the state the backend was in at `deadline`; otherwise when xenstore cannot be asked.
    pub fn close<'d, P: Platform + Wait>(
        mut self,
        xs: &mut Xenstore<'_, P>,
        deadline: impl Into<Until<'d>>,
    ) -> Result<(), Error> {
        let closed = self.end(xs, deadline.into().deadline());
        // If that fails the watch is ended later.
        let _ = xs.unwatch(self.watch);
        closed
    }
}

impl<S> Frontend<S> {
    /// The device's directory, below this domain's own.
    pub fn frontend_path(&self) -> &Path {
        &self.frontend
    }

    /// The backend's directory for this device.
    pub fn backend_path(&self) -> &Path {
        &self.backend
    }

    /// The domain that the backend is in.
    pub fn backend_id(&self) -> DomId {
        self.backend_id
    }

    /// The device's number.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The watch on the backend's state.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// The backend's state; [`XenbusState::UNKNOWN`] when there is none, or it is no number.
    ///
    /// # Errors
    /// When xenstore cannot be asked.
    pub fn backend_state<P: Platform + Wait>(&self, xs: &mut Xenstore<'_, P>) -> Result<XenbusState, Error> {
        state_of(xs.read(&self.backend.join("state")?))
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
        self.enter(xs, state, &mut |_| Ok(()))
    }

    /// Goes to a state, with what `f` writes, unless the device is not ours any more.
    pub(super) fn enter<'x, P: Platform + Wait>(
        &self,
        xs: &mut Xenstore<'x, P>,
        next: XenbusState,
        f: &mut dyn FnMut(&mut Transaction<'_, 'x, P>) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let state = self.frontend.join("state")?;
        let entered = xs.transaction(|transaction| {
            let is_ours = if next == XenbusState::INITIALISING {
                // It is about to be ours.
                match transaction.read(&self.frontend.join("backend")?) {
                    Ok(backend) => backend == self.backend.as_bytes(),
                    Err(error) if error.is_absent() => false,
                    Err(error) => return Err(error),
                }
            } else {
                let owner = self.owner(transaction.read(&state))?;
                if let Owner::Us(found) = owner {
                    self.ours.set([found, next]);
                }
                matches!(owner, Owner::Us(_))
            };
            if is_ours {
                f(transaction)?;
                transaction.write_display(&state, next.0)?;
            }
            Ok(is_ours)
        })?;
        if entered {
            self.ours.set([next; 2]);
        }
        Ok(entered)
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
        xs.read_optional(&self.backend.join(key)?)
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
        xs.read_optional(&self.frontend.join(key)?)
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
        Ok(xs.read_all(&self.backend, keys)?.map(optional))
    }

    /// Gives a device up without a handshake; its watch ends.
    ///
    /// # Errors
    /// When xenstore cannot be asked, or refuses.
    pub fn abandon<P: Platform + Wait>(self, xs: &mut Xenstore<'_, P>) -> Result<(), Error> {
        let switched = self.switch(xs, XenbusState::CLOSED);
        // If that fails the watch is ended later.
        let _ = xs.unwatch(self.watch);
        switched.map(drop)
    }

    /// Takes the device to its end, as far as the backend follows. Our own state is Closed at the end, whatever fails before.
    pub(super) fn end<P: Platform + Wait>(
        &mut self,
        xs: &mut Xenstore<'_, P>,
        deadline: &mut Deadline,
    ) -> Result<(), Error> {
        let let_go = match self.switch(xs, XenbusState::CLOSING) {
            // Who took the device away has closed it.
            Ok(false) => return Ok(()),
            Ok(true) => self.wait_for(xs, deadline, |state| state.is_gone().then_some(Ok(()))),
            Err(error) => Err(error),
        };
        let closed = self.switch(xs, XenbusState::CLOSED);
        let_go?;
        if !closed? {
            return Ok(());
        }
        let done = [XenbusState::CLOSED, XenbusState::UNKNOWN, XenbusState::INIT_WAIT];
        self.wait_for(xs, deadline, |state| done.contains(&state).then_some(Ok(())))
    }

    /// Whose the device is, by what our own state node says.
    fn owner(&self, answer: Result<&[u8], Error>) -> Result<Owner, Error> {
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

    pub(super) fn wait_for<P: Platform + Wait>(
        &mut self,
        xs: &mut Xenstore<'_, P>,
        deadline: &mut Deadline,
        mut decide: impl FnMut(XenbusState) -> Option<Result<(), Error>>,
    ) -> Result<(), Error> {
        let mut outcome = None;
        xs.watch_until(self.watch, deadline, &mut |xs| {
            xs.poll()?;
            let events = xs.link.watches.events(self.watch);
            let state = match self.seen.filter(|(_, at)| *at == events) {
                Some((state, _)) => state,
                None => self.backend_state(xs)?,
            };
            self.seen = Some((state, events));
            outcome = decide(state);
            Ok(outcome.is_some())
        })?;
        let late = || Err(Error::BackendTimedOut(self.seen.map_or(XenbusState::UNKNOWN, |(state, _)| state)));
        outcome.unwrap_or_else(late)
    }

    /// The device in its next state, or its end.
    pub(super) fn go_on<P: Platform + Wait, T>(
        self,
        xs: &mut Xenstore<'_, P>,
        result: Result<(), Error>,
    ) -> Result<Frontend<T>, Error> {
        if let Err(error) = result {
            // The first error says more than one about the watch.
            let _ = xs.unwatch(self.watch);
            return Err(error);
        }
        let Self { frontend, backend, backend_id, index, watch, seen, ours, change, .. } = self;
        Ok(Frontend { frontend, backend, backend_id, index, watch, seen, ours, change, _state: PhantomData })
    }
}

impl<S> fmt::Debug for Frontend<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frontend")
            .field("frontend", &self.frontend)
            .field("backend", &self.backend)
            .field("backend_id", &self.backend_id)
            .finish_non_exhaustive()
    }
}
