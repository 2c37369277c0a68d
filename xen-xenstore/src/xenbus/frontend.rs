//! The frontend's side of the handshake, with how far it is in its type.

use core::fmt;
use core::marker::PhantomData;
use core::str::FromStr;
use core::time::Duration;

use xen_hypercall::{DomId, Platform, Wait};

use super::XenbusState;
use crate::link::Sink;
use crate::nodes::{optional, parse, text};
use crate::text::Text;
use crate::wire::Operation;
use crate::{Error, Path, Transaction, Watch, Xenstore};

/// How long a backend that waits may take to notice that the device is closed.
const NOTICE: Duration = Duration::from_secs(2);

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

/// A device as its frontend sees it, in state `S`. Each step of the handshake takes it and answers it in the next
/// state, so a device that is not connected cannot be used as one that is.
///
/// It borrows nothing: each call takes the connection to xenstore. A step that fails takes the device with it, and
/// ends its watch; [`open`](Frontend::open) begins again.
pub struct Frontend<S> {
    frontend: Path,
    backend: Path,
    backend_id: DomId,
    index: u32,
    watch: Watch,
    /// The backend's state, and how many events of the watch had come before it was read: without another it is still so.
    seen: Option<(XenbusState, u32)>,
    _state: PhantomData<S>,
}

impl Frontend<Initialising> {
    /// Finds device `index` of `kind` (`vif`, `vbd`, ...) and its backend, and begins the handshake, whatever an
    /// earlier kernel of this domain left behind.
    ///
    /// The toolstack may still be writing the device's nodes: they are waited for until `deadline`. So is a backend
    /// that still works for that earlier kernel, and has to let go first.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such device by then; [`Error::BadValue`] when its nodes make no sense.
    pub fn open<P: Platform + Wait>(
        xs: &mut Xenstore<'_, P>,
        kind: &str,
        index: u32,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let frontend = Path::format(format_args!("device/{kind}/{index}"))?;
        let found = match find_backend(xs, &frontend) {
            Err(error) if error.is_not_found() => await_backend(xs, &frontend, deadline),
            found => found,
        };
        Self::start(xs, frontend, found?, index, deadline)
    }

    /// Like [`open`](Self::open) for a device that is there, as those are that the domain was made with: one whose nodes are
    /// not there is not waited for.
    ///
    /// # Errors
    /// As [`open`](Self::open), at once.
    pub fn open_present<P: Platform + Wait>(
        xs: &mut Xenstore<'_, P>,
        kind: &str,
        index: u32,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let frontend = Path::format(format_args!("device/{kind}/{index}"))?;
        let found = find_backend(xs, &frontend)?;
        Self::start(xs, frontend, found, index, deadline)
    }

    fn start<P: Platform + Wait>(
        xs: &mut Xenstore<'_, P>,
        frontend: Path,
        (backend, backend_id): (Path, DomId),
        index: u32,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let state = backend.join("state")?;
        let watch = xs.take_place(&state)?;
        let mut device =
            Self { frontend, backend, backend_id, index, watch, seen: None, _state: PhantomData };
        let begun = match device.watch_and_look(xs, &state) {
            Ok(ours) => device.begin(xs, ours, deadline),
            Err(error) => Err(error),
        };
        match begun {
            Ok(()) => Ok(device),
            Err(error) => {
                // The first error says more than one about the watch.
                let _ = xs.unwatch(device.watch);
                Err(error)
            }
        }
    }

    /// Begins to watch the backend's state, and answers our own.
    fn watch_and_look<P: Platform + Wait>(
        &self,
        xs: &mut Xenstore<'_, P>,
        state: &Path,
    ) -> Result<XenbusState, Error> {
        let (mut watched, mut ours) = (Ok(()), Ok(XenbusState::UNKNOWN));
        let sink: &mut Sink<'_> = &mut |tag, answer| match tag {
            0 => watched = answer.map(drop),
            _ => ours = state_of(answer),
        };
        xs.link.give_up();
        let asked = xs
            .post_watch(self.watch, state, 0, sink)
            .and_then(|()| xs.post_read(&self.frontend, "state", 1, sink))
            .and_then(|()| xs.settle(sink));
        if let Err(error) = asked.and(watched) {
            xs.give_watch_up(self.watch, error);
            return Err(error);
        }
        ours
    }

    /// Goes to Initialising, and looks at the backend.
    fn initialise<P: Platform + Wait>(&mut self, xs: &mut Xenstore<'_, P>) -> Result<(), Error> {
        xs.poll()?;
        let events = xs.link.watches.events(self.watch);
        let (mut written, mut theirs) = (Ok(()), Ok(XenbusState::UNKNOWN));
        let sink: &mut Sink<'_> = &mut |tag, answer| match tag {
            0 => written = answer.map(drop),
            _ => theirs = state_of(answer),
        };
        let (state, value) = (self.frontend.join("state")?, Text::new(XenbusState::INITIALISING.0)?);
        xs.link.give_up();
        xs.post(Operation::WRITE, 0, &[state.as_bytes(), b"\0", value.as_bytes()], 0, sink)?;
        xs.post_read(&self.backend, "state", 1, sink)?;
        xs.settle(sink)?;
        written?;
        self.seen = Some((theirs?, events));
        Ok(())
    }

    /// Goes to Initialising, from wherever an earlier kernel of this domain left the device.
    fn begin<P: Platform + Wait>(
        &mut self,
        xs: &mut Xenstore<'_, P>,
        ours: XenbusState,
        deadline: Duration,
    ) -> Result<(), Error> {
        if [XenbusState::UNKNOWN, XenbusState::INITIALISING].contains(&ours) {
            return self.initialise(xs);
        }
        let theirs = self.backend_state(xs)?;
        // A backend that still works for that kernel would take our start for nothing, or be taken for one that is
        // connected to us. It has to see the device end first.
        let at_work = [XenbusState::INITIALISED, XenbusState::CONNECTED, XenbusState::CLOSING];
        if at_work.contains(&theirs) {
            // A backend that does not let go is met again in `wait_for_backend`, which has the error for it.
            self.end(xs, deadline).or_else(|error| match error {
                Error::BackendTimedOut(_) => Ok(()),
                error => Err(error),
            })?;
        } else if theirs == XenbusState::INIT_WAIT {
            // A backend that was started again takes up what it finds in our nodes, and may be about to be connected to
            // that. It closes when it sees that we did.
            self.switch(xs, XenbusState::CLOSED)?;
            let limit = deadline.min(xs.now().saturating_add(NOTICE));
            let closed = self.wait_for(xs, limit, |state| {
                [XenbusState::CLOSED, XenbusState::UNKNOWN].contains(&state).then_some(Ok(()))
            });
            match closed {
                // One that waits whatever we do has taken up nothing.
                Err(Error::BackendTimedOut(XenbusState::INIT_WAIT)) if xs.now() < deadline => {}
                closed => closed?,
            }
        }
        self.initialise(xs)
    }

    /// Waits until the backend has told what it can do.
    ///
    /// A backend that is still closing after an earlier kernel is waited for: it begins anew when it sees us begin.
    ///
    /// # Errors
    /// [`Error::BackendTimedOut`] with the state it was in at `deadline`.
    pub fn wait_for_backend<P: Platform + Wait>(
        mut self,
        xs: &mut Xenstore<'_, P>,
        deadline: Duration,
    ) -> Result<Frontend<BackendReady>, Error> {
        // One that says Connected has not seen yet that we begin anew, and uses references that may be others by now.
        let ready = [XenbusState::INIT_WAIT, XenbusState::INITIALISED];
        let waited = self.wait_for(xs, deadline, |state| ready.contains(&state).then_some(Ok(())));
        self.go_on(xs, waited)
    }
}

/// What a node says of a side; one that is not there, or makes no sense, says that the side is not there.
fn state_of(answer: Result<&[u8], Error>) -> Result<XenbusState, Error> {
    match optional(answer.and_then(parse)) {
        Err(Error::BadValue | Error::NotText) => Ok(XenbusState::UNKNOWN),
        state => Ok(state?.unwrap_or(XenbusState::UNKNOWN)),
    }
}

fn find_backend<P: Platform + Wait>(
    xs: &mut Xenstore<'_, P>,
    frontend: &Path,
) -> Result<(Path, DomId), Error> {
    let (mut backend, mut id) = (Err(Error::BadPath), Err(Error::BadValue));
    xs.read_each(frontend, &["backend", "backend-id"], |index, value| match index {
        0 => backend = value.and_then(text).and_then(Path::new),
        _ => id = value.and_then(parse),
    })?;
    Ok((backend?, DomId(id?)))
}

/// The toolstack may still be writing.
fn await_backend<P: Platform + Wait>(
    xs: &mut Xenstore<'_, P>,
    frontend: &Path,
    deadline: Duration,
) -> Result<(Path, DomId), Error> {
    let watch = xs.watch(frontend)?;
    let looked = loop {
        match find_backend(xs, frontend) {
            Err(error) if error.is_not_found() && xs.now() < deadline => {
                if let Err(error) = xs.wait_fired(&watch, deadline) {
                    break Err(error);
                }
            }
            other => break other,
        }
    };
    let ended = xs.unwatch(watch);
    looked.and_then(|found| ended.map(|()| found))
}

impl Frontend<BackendReady> {
    /// Tells the backend what it needs, and goes to state `next`, all in one transaction. `f` gets the transaction
    /// and the device's directory; it may run more than once.
    ///
    /// # Errors
    /// What `f` answers, or the transaction.
    pub fn publish<'x, P: Platform + Wait>(
        self,
        xs: &mut Xenstore<'x, P>,
        next: XenbusState,
        mut f: impl FnMut(&mut Transaction<'_, 'x, P>, &Path) -> Result<(), Error>,
    ) -> Result<Frontend<Published>, Error> {
        let state = self.frontend.join("state")?;
        let published = xs.transaction(|transaction| {
            f(transaction, &self.frontend)?;
            transaction.write_display(&state, next.0)
        });
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
    pub fn wait_connected<P: Platform + Wait>(
        mut self,
        xs: &mut Xenstore<'_, P>,
        deadline: Duration,
    ) -> Result<Frontend<Connected>, Error> {
        let waited = self.wait_for(xs, deadline, |state| match state {
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
    /// Whether the backend wants the device to end, or is gone. Cheap unless its state has changed.
    ///
    /// # Errors
    /// [`Error::Broken`] when the connection to xenstore is of no use any more; otherwise when it cannot be asked,
    /// and the next call asks again.
    pub fn is_closing<P: Platform + Wait>(&self, xs: &mut Xenstore<'_, P>) -> Result<bool, Error> {
        let state = self.changed(xs)?;
        let closing = state.is_some_and(XenbusState::is_gone);
        if closing {
            // It stays so, whoever asks next.
            xs.link.watches.mark(self.watch);
        }
        Ok(closing)
    }

    /// The backend's state, if it may have changed since this or [`is_closing`](Self::is_closing) was called last, or since
    /// the handshake looked at it.
    /// A backend that changes something about a connected device does it by way of
    /// [`Reconfiguring`](XenbusState::RECONFIGURING) and [`Reconfigured`](XenbusState::RECONFIGURED).
    ///
    /// # Errors
    /// As [`is_closing`](Self::is_closing).
    pub fn changed<P: Platform + Wait>(
        &self,
        xs: &mut Xenstore<'_, P>,
    ) -> Result<Option<XenbusState>, Error> {
        if !xs.fired(&self.watch)?
            || self.seen.is_some_and(|(_, at)| at == xs.link.watches.events(self.watch))
        {
            // That event came before the handshake looked last.
            return Ok(None);
        }
        let state = self.backend_state(xs);
        if state.is_err() {
            xs.link.watches.mark(self.watch);
        }
        state.map(Some)
    }

    /// Ends the device: tells the backend, waits until it has let go, and is closed.
    ///
    /// The device is closed as far as we are concerned even when the backend does not answer.
    ///
    /// # Errors
    /// [`Error::BackendTimedOut`] with the state the backend was in at `deadline`.
    pub fn close<P: Platform + Wait>(
        mut self,
        xs: &mut Xenstore<'_, P>,
        deadline: Duration,
    ) -> Result<(), Error> {
        let closed = self.end(xs, deadline);
        let ended = xs.unwatch(self.watch);
        closed.and(ended)
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

    /// Sets our own state.
    ///
    /// # Errors
    /// When xenstore refuses.
    pub fn switch<P: Platform + Wait>(
        &self,
        xs: &mut Xenstore<'_, P>,
        state: XenbusState,
    ) -> Result<(), Error> {
        xs.write_display(&self.frontend.join("state")?, state.0)
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
    /// When xenstore refuses.
    pub fn abandon<P: Platform + Wait>(self, xs: &mut Xenstore<'_, P>) -> Result<(), Error> {
        xs.unwatch(self.watch)?;
        self.switch(xs, XenbusState::CLOSED)
    }

    /// Takes the device to its end, as far as the backend follows.
    fn end<P: Platform + Wait>(&mut self, xs: &mut Xenstore<'_, P>, deadline: Duration) -> Result<(), Error> {
        self.switch(xs, XenbusState::CLOSING)?;
        let let_go = self.wait_for(xs, deadline, |state| state.is_gone().then_some(Ok(())));
        self.switch(xs, XenbusState::CLOSED)?;
        let_go?;
        let done = [XenbusState::CLOSED, XenbusState::UNKNOWN, XenbusState::INIT_WAIT];
        self.wait_for(xs, deadline, |state| done.contains(&state).then_some(Ok(())))
    }

    fn wait_for<P: Platform + Wait>(
        &mut self,
        xs: &mut Xenstore<'_, P>,
        deadline: Duration,
        mut decide: impl FnMut(XenbusState) -> Option<Result<(), Error>>,
    ) -> Result<(), Error> {
        loop {
            xs.poll()?;
            let events = xs.link.watches.events(self.watch);
            let known = self.seen.filter(|(_, at)| *at == events);
            let state = match known {
                Some((state, _)) => state,
                None => self.backend_state(xs)?,
            };
            self.seen = Some((state, events));
            if let Some(outcome) = decide(state) {
                return outcome;
            }
            if !xs.wait_fired(&self.watch, deadline)? {
                // The time may have been up before, and the backend have had none to follow.
                if known.is_some() {
                    self.seen = None;
                    continue;
                }
                return Err(Error::BackendTimedOut(state));
            }
        }
    }

    /// The device in its next state, or its end.
    fn go_on<P: Platform + Wait, T>(
        self,
        xs: &mut Xenstore<'_, P>,
        result: Result<(), Error>,
    ) -> Result<Frontend<T>, Error> {
        if let Err(error) = result {
            // The first error says more than one about the watch.
            let _ = xs.unwatch(self.watch);
            return Err(error);
        }
        let Self { frontend, backend, backend_id, index, watch, seen, .. } = self;
        Ok(Frontend { frontend, backend, backend_id, index, watch, seen, _state: PhantomData })
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
