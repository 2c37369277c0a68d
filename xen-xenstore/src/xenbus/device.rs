//! What a device is in every state of its handshake.

use core::cell::Cell;

use xen_hypercall::DomId;

use super::{BackendChange, Entry, XenbusState};
use crate::conversation::{Changes, Question};
use crate::nodes::parse;
use crate::{Ask, Error, Path, Watch};

/// A device and its watch, whatever state it is in.
pub(super) struct Device {
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
}

/// Whose a device's directory is.
pub(super) enum Owner {
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

impl Device {
    /// The backend's state, as [`state_of`] sees it.
    pub(super) async fn backend_state<A: Ask>(&self, ask: &mut A) -> Result<XenbusState, Error> {
        let mut state = Ok(XenbusState::UNKNOWN);
        let mut question = core::iter::once(Question::read(&self.backend, "state"));
        ask.ask_all(&mut question, &mut |_, answer| state = state_of(answer)).await?;
        state
    }

    /// Looks at both sides at once.
    pub(super) async fn look<A: Ask>(&self, ask: &mut A) -> Result<BackendChange, Error> {
        let (mut theirs, mut owner) = (Ok(XenbusState::UNKNOWN), Ok(Owner::Nobody));
        let questions = [Question::read(&self.backend, "state"), Question::read(&self.frontend, "state")];
        ask.ask_all(&mut questions.into_iter(), &mut |tag, answer| match tag {
            0 => theirs = state_of(answer),
            _ => owner = self.owner(answer),
        })
        .await?;
        let theirs = theirs?;
        Ok(match owner? {
            Owner::Us(_) => BackendChange::of(theirs),
            Owner::Nobody => BackendChange::Gone,
            Owner::Another => BackendChange::Restarted,
        })
    }

    /// Goes to a state, with what `f` writes, unless the device is not ours any more.
    pub(super) async fn enter<A: Ask>(
        &self,
        ask: &mut A,
        next: XenbusState,
        f: &mut dyn FnMut(&mut Changes<'_>) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let entry = Entry::new(self, next)?;
        let entered = ask.transact(&entry, f).await;
        entry.conclude(entered)
    }

    /// Sets our own state, unless the device is not ours any more.
    pub(super) async fn switch<A: Ask>(&self, ask: &mut A, state: XenbusState) -> Result<bool, Error> {
        self.enter(ask, state, &mut |_| Ok(())).await
    }

    /// Takes the device to its end, as far as the backend follows. Our own state is Closed at the end, whatever fails before.
    pub(super) async fn end<A: Ask>(&mut self, ask: &mut A) -> Result<(), Error> {
        let let_go = match self.switch(ask, XenbusState::CLOSING).await {
            // Who took the device away has closed it.
            Ok(false) => return Ok(()),
            Ok(true) => self.wait_for(ask, None, &mut |state| state.is_gone().then_some(Ok(()))).await,
            Err(error) => Err(error),
        };
        let closed = self.switch(ask, XenbusState::CLOSED).await;
        let_go?;
        if !closed? {
            return Ok(());
        }
        let done = [XenbusState::CLOSED, XenbusState::UNKNOWN, XenbusState::INIT_WAIT];
        self.wait_for(ask, None, &mut |state| done.contains(&state).then_some(Ok(()))).await
    }

    /// Whose the device is, by what our own state node says.
    pub(super) fn owner(&self, answer: Result<&[u8], Error>) -> Result<Owner, Error> {
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

    /// The backend's state. Asks only if something has happened since it was asked for last.
    pub(super) async fn see<A: Ask>(&mut self, ask: &mut A) -> Result<XenbusState, Error> {
        ask.look()?;
        let events = ask.events(self.watch);
        let state = match self.seen.filter(|(_, at)| *at == events) {
            Some((state, _)) => state,
            None => self.backend_state(ask).await?,
        };
        self.seen = Some((state, events));
        Ok(state)
    }

    /// Waits until `decide` likes the backend's state, or until the time is up, that of the conversation or that of `notice`.
    pub(super) async fn wait_for<A: Ask>(
        &mut self,
        ask: &mut A,
        mut notice: Option<&mut A::Notice>,
        decide: &mut dyn FnMut(XenbusState) -> Option<Result<(), Error>>,
    ) -> Result<(), Error> {
        let mut in_time = true;
        loop {
            let state = self.see(ask).await?;
            match decide(state) {
                Some(outcome) => return outcome,
                None if !in_time => return Err(Error::BackendTimedOut(state)),
                None => {}
            }
            in_time = ask.wait_event(self.watch, notice.as_deref_mut()).await?;
            // What happened during the last look is looked at: once.
            if !in_time && !ask.has_fired(self.watch)? {
                return Err(Error::BackendTimedOut(state));
            }
        }
    }
}
