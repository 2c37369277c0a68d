//! The first steps of a handshake: the device is found, and begins, whatever an earlier kernel left behind.

use core::cell::Cell;
use core::marker::PhantomData;
use core::time::Duration;

use xen_hypercall::{DomId, Platform, Wait};

use super::device::{Device, state_of};
use super::frontend::{BackendReady, Frontend, Initialising};
use super::{BackendChange, XenbusState};
use crate::conversation::Question;
use crate::nodes::{parse, text};
use crate::{Ask, Blocking, Error, Path, Until, Xenstore, block_on};

/// How long a backend that waits may take to notice that the device is closed.
const NOTICE: Duration = Duration::from_secs(2);

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
        block_on(Self::find(&mut Blocking::until(xs, deadline.into()), kind, index, true))
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
        block_on(Self::find(&mut Blocking::until(xs, deadline.into()), kind, index, false))
    }

    /// [`open`](Self::open) for whoever asks.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_async<A: Ask>(ask: &mut A, kind: &str, index: u32) -> Result<Self, Error> {
        Self::find(ask, kind, index, true).await
    }

    /// [`open_present`](Self::open_present) for whoever asks.
    ///
    /// # Errors
    /// As [`open_present`](Self::open_present).
    pub async fn open_present_async<A: Ask>(ask: &mut A, kind: &str, index: u32) -> Result<Self, Error> {
        Self::find(ask, kind, index, false).await
    }

    async fn find<A: Ask>(ask: &mut A, kind: &str, index: u32, wait: bool) -> Result<Self, Error> {
        let frontend = Path::format(format_args!("device/{kind}/{index}"))?;
        ask.resume();
        let (backend, backend_id) = await_backend(ask, &frontend, wait).await?;
        let state = backend.join("state")?;
        let watch = ask.take_place(&state).await?;
        let mut device = Device {
            frontend,
            backend,
            backend_id,
            index,
            watch,
            seen: None,
            ours: Cell::new([XenbusState::UNKNOWN; 2]),
            change: Cell::new(BackendChange::Same),
        };
        let begun = match device.watch_and_look(ask, &state).await {
            Ok(()) => device.begin(ask).await,
            Err(error) => Err(error),
        };
        match begun {
            Ok(()) => Ok(Self { device, _state: PhantomData }),
            Err(error) => {
                // The first error says more than one about the watch.
                let _ = ask.end_watch(device.watch).await;
                Err(error)
            }
        }
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
        block_on(self.wait_for_backend_async(&mut Blocking::until(xs, deadline.into())))
    }

    /// [`wait_for_backend`](Self::wait_for_backend) for whoever asks.
    ///
    /// # Errors
    /// As [`wait_for_backend`](Self::wait_for_backend).
    pub async fn wait_for_backend_async<A: Ask>(
        mut self,
        ask: &mut A,
    ) -> Result<Frontend<BackendReady>, Error> {
        // One that says Connected has not seen yet that we begin anew, and uses references that may be others by now.
        let ready = [XenbusState::INIT_WAIT, XenbusState::INITIALISED];
        let waited =
            self.device.wait_for(ask, None, &mut |state| ready.contains(&state).then_some(Ok(()))).await;
        self.go_on(ask, waited).await
    }
}

impl Device {
    /// Begins to watch the backend's state, and notes both sides'.
    async fn watch_and_look<A: Ask>(&mut self, ask: &mut A, state: &Path) -> Result<(), Error> {
        let (mut watched, mut ours, mut theirs) = (Ok(()), Ok(XenbusState::UNKNOWN), Err(Error::NotReady));
        let questions = [
            Question::watch(self.watch, state),
            Question::read(&self.frontend, "state"),
            Question::read(&self.backend, "state"),
        ];
        let asked = ask
            .ask_all(&mut questions.into_iter(), &mut |tag, answer| match tag {
                0 => watched = answer.map(drop),
                1 => ours = state_of(answer),
                _ => theirs = state_of(answer),
            })
            .await;
        if let Err(error) = asked.and(watched) {
            ask.give_watch_up(self.watch, error);
            return Err(error);
        }
        self.ours.set([ours?; 2]);
        // The first event of a watch is that it was set, before that answer was given. With a second one the state may be another.
        self.seen = Some((theirs?, 1));
        Ok(())
    }

    /// Goes to Initialising, from wherever an earlier kernel of this domain left the device.
    async fn begin<A: Ask>(&mut self, ask: &mut A) -> Result<(), Error> {
        let [ours, _] = self.ours.get();
        if let (XenbusState::INITIALISING, Some((XenbusState::INIT_WAIT, _))) = (ours, self.seen) {
            // The toolstack has written it, and the backend has seen it.
            return Ok(());
        }
        if ![XenbusState::UNKNOWN, XenbusState::INITIALISING].contains(&ours) {
            let theirs = self.backend_state(ask).await?;
            // A backend that still works for that kernel would take our start for nothing, or be taken for one that is
            // connected to us. It has to see the device end first.
            match theirs {
                XenbusState::INITIALISED | XenbusState::CONNECTED | XenbusState::CLOSING => {
                    match self.end(ask).await {
                        // A backend that does not let go is met again in `wait_for_backend`, which has the error for it.
                        Err(Error::BackendTimedOut(_)) => {}
                        ended => ended?,
                    }
                }
                XenbusState::INIT_WAIT => self.turn_away(ask).await?,
                _ => {}
            }
        }
        if self.switch(ask, XenbusState::INITIALISING).await? {
            // The backend may have followed already.
            self.seen = None;
            return Ok(());
        }
        Err(Error::BackendGone(XenbusState::UNKNOWN))
    }

    /// A backend that was started again takes up what it finds in our nodes, and may be about to be connected to that. It
    /// closes when it sees that we did.
    async fn turn_away<A: Ask>(&mut self, ask: &mut A) -> Result<(), Error> {
        self.switch(ask, XenbusState::CLOSED).await?;
        let mut notice = ask.notice(NOTICE);
        let closed = self
            .wait_for(ask, Some(&mut notice), &mut |state| {
                [XenbusState::CLOSED, XenbusState::UNKNOWN].contains(&state).then_some(Ok(()))
            })
            .await;
        let has_time = ask.noticed(notice);
        match closed {
            // One that waits whatever we do has taken up nothing.
            Err(Error::BackendTimedOut(XenbusState::INIT_WAIT)) if has_time => Ok(()),
            closed => closed,
        }
    }
}

async fn find_backend<A: Ask>(ask: &mut A, frontend: &Path) -> Result<(Path, DomId), Error> {
    let (mut backend, mut id) = (Err(Error::BadPath), Err(Error::BadValue));
    let questions = [Question::read(frontend, "backend"), Question::read(frontend, "backend-id")];
    ask.ask_all(&mut questions.into_iter(), &mut |index, value| match index {
        0 => backend = value.and_then(text).and_then(Path::new),
        _ => id = value.and_then(parse),
    })
    .await?;
    Ok((backend?, DomId(id?)))
}

/// The toolstack may still be writing.
async fn await_backend<A: Ask>(ask: &mut A, frontend: &Path, wait: bool) -> Result<(Path, DomId), Error> {
    let mut watch = None;
    let mut in_time = wait;
    let found = loop {
        let found = find_backend(ask, frontend).await;
        match &found {
            Err(error) if error.is_absent() && in_time => {}
            _ => break found,
        }
        let Some(watch) = watch else {
            // The first event is that it is set.
            watch = Some(ask.watch(frontend).await?);
            continue;
        };
        match ask.wait_event(watch, None).await {
            Ok(true) => {}
            waited => {
                in_time = false;
                // What happened during the last look is looked at: once.
                match waited.and_then(|_| ask.has_fired(watch)) {
                    Ok(true) => {}
                    Ok(false) => break found,
                    Err(error) => break Err(error),
                }
            }
        }
    };
    if let Some(watch) = watch {
        // What was found counts, and what is left of the watch is ended later.
        let _ = ask.end_watch(watch).await;
    }
    found
}
