//! What a device is in every state of its handshake.

use core::cell::Cell;

use xen_evtchn::Deadline;
use xen_hypercall::{DomId, Platform, Wait};

use super::{BackendChange, XenbusState};
use crate::link::Sink;
use crate::nodes::parse;
use crate::transaction::note;
use crate::{Error, Path, Transaction, Watch, Xenstore};

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

impl Device {
    /// The backend's state, as [`state_of`] sees it.
    pub(super) fn backend_state<P: Platform + Wait>(
        &self,
        xs: &mut Xenstore<'_, P>,
    ) -> Result<XenbusState, Error> {
        state_of(xs.read(&self.backend.join("state")?))
    }

    /// Looks at both sides at once.
    pub(super) fn look<P: Platform + Wait>(&self, xs: &mut Xenstore<'_, P>) -> Result<BackendChange, Error> {
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

    /// Goes to a state, with what `f` writes, unless the device is not ours any more. Whose it is is asked together with what is
    /// written: if it is another's, that comes to nothing.
    #[inline(never)]
    pub(super) fn enter<'x, P: Platform + Wait>(
        &self,
        xs: &mut Xenstore<'x, P>,
        next: XenbusState,
        f: &mut dyn FnMut(&mut Transaction<'_, 'x, P>) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let (state, backend) = (self.frontend.join("state")?, self.frontend.join("backend")?);
        // As long as we have told the backend nothing, a device that was made anew may be in the same state, with another backend.
        let begins =
            next == XenbusState::INITIALISING || self.ours.get().contains(&XenbusState::INITIALISING);
        // Owner and backend, as far as they were told.
        let (owner, has_backend, lost) = (Cell::new(None), Cell::new(None), Cell::new(false));
        let failed = Cell::new(None);
        let sink: &mut Sink<'_> = &mut |tag, answer| match tag {
            0 => note(&failed, answer),
            1 => owner.set(Some(self.owner(answer))),
            _ => has_backend.set(Some(match answer {
                Ok(backend) => Ok(backend == self.backend.as_bytes()),
                Err(error) if error.is_absent() => Ok(false),
                Err(error) => Err(error),
            })),
        };
        let entered = xs.transaction_with(&failed, sink, |transaction| {
            lost.set(false);
            transaction.look(1, &state)?;
            if begins {
                transaction.look(2, &backend)?;
            } else {
                has_backend.set(Some(Ok(true)));
            }
            let written = f(transaction).and_then(|()| transaction.write_display(&state, next.0));
            let written = written.and(transaction.settle());
            let (Some(owner), Some(has_backend)) = (owner.take(), has_backend.take()) else {
                return written;
            };
            if let Owner::Us(found) = owner? {
                self.ours.set([found, next]);
            } else if next != XenbusState::INITIALISING {
                lost.set(true);
            }
            // Or it is about to be ours.
            if !has_backend? {
                lost.set(true);
            }
            if lost.get() { Err(Error::BackendGone(XenbusState::UNKNOWN)) } else { written }
        });
        let entered = match entered {
            Err(_) if lost.get() => false,
            entered => {
                entered?;
                true
            }
        };
        if entered {
            self.ours.set([next; 2]);
        }
        Ok(entered)
    }

    /// Sets our own state, unless the device is not ours any more.
    pub(super) fn switch<P: Platform + Wait>(
        &self,
        xs: &mut Xenstore<'_, P>,
        state: XenbusState,
    ) -> Result<bool, Error> {
        self.enter(xs, state, &mut |_| Ok(()))
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
            Ok(true) => self.wait_for(xs, deadline, &mut |state| state.is_gone().then_some(Ok(()))),
            Err(error) => Err(error),
        };
        let closed = self.switch(xs, XenbusState::CLOSED);
        let_go?;
        if !closed? {
            return Ok(());
        }
        let done = [XenbusState::CLOSED, XenbusState::UNKNOWN, XenbusState::INIT_WAIT];
        self.wait_for(xs, deadline, &mut |state| done.contains(&state).then_some(Ok(())))
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

    /// The backend's state. Asks only if something has happened since it was asked for last.
    pub(super) fn see<P: Platform + Wait>(&mut self, xs: &mut Xenstore<'_, P>) -> Result<XenbusState, Error> {
        xs.poll()?;
        let events = xs.link.watches.events(self.watch);
        let state = match self.seen.filter(|(_, at)| *at == events) {
            Some((state, _)) => state,
            None => self.backend_state(xs)?,
        };
        self.seen = Some((state, events));
        Ok(state)
    }

    #[inline(never)]
    pub(super) fn wait_for<P: Platform + Wait>(
        &mut self,
        xs: &mut Xenstore<'_, P>,
        deadline: &mut Deadline,
        decide: &mut dyn FnMut(XenbusState) -> Option<Result<(), Error>>,
    ) -> Result<(), Error> {
        let mut outcome = None;
        xs.watch_until(self.watch, deadline, &mut |xs| {
            outcome = decide(self.see(xs)?);
            Ok(outcome.is_some())
        })?;
        let late = || Err(Error::BackendTimedOut(self.seen.map_or(XenbusState::UNKNOWN, |(state, _)| state)));
        outcome.unwrap_or_else(late)
    }
}
