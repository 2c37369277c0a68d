//! The first steps of a handshake: the device is found, and begins, whatever an earlier kernel left behind.

use core::cell::Cell;
use core::marker::PhantomData;
use core::time::Duration;

use xen_evtchn::Deadline;
use xen_hypercall::{DomId, Platform, Wait};

use super::device::{Device, state_of};
use super::frontend::{BackendReady, Frontend, Initialising};
use super::{BackendChange, XenbusState};
use crate::link::Sink;
use crate::nodes::{parse, text};
use crate::{Error, Path, Until, Xenstore};

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
        let frontend = Path::format(format_args!("device/{kind}/{index}"))?;
        let mut until = deadline.into();
        xs.link.pauses.resume(until.deadline());
        let found = match find_backend(xs, &frontend) {
            Err(error) if error.is_absent() => await_backend(xs, &frontend, until.deadline()),
            found => found,
        };
        Self::start(xs, frontend, found?, index, until.deadline())
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
        let frontend = Path::format(format_args!("device/{kind}/{index}"))?;
        let mut until = deadline.into();
        xs.link.pauses.resume(until.deadline());
        let found = find_backend(xs, &frontend)?;
        Self::start(xs, frontend, found, index, until.deadline())
    }

    fn start<P: Platform + Wait>(
        xs: &mut Xenstore<'_, P>,
        frontend: Path,
        (backend, backend_id): (Path, DomId),
        index: u32,
        deadline: &mut Deadline,
    ) -> Result<Self, Error> {
        let state = backend.join("state")?;
        let watch = xs.take_place(&state)?;
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
        let begun = match device.watch_and_look(xs, &state) {
            Ok(()) => device.begin(xs, deadline),
            Err(error) => Err(error),
        };
        match begun {
            Ok(()) => Ok(Self { device, _state: PhantomData }),
            Err(error) => {
                // The first error says more than one about the watch.
                let _ = xs.unwatch(device.watch);
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
        mut self,
        xs: &mut Xenstore<'_, P>,
        deadline: impl Into<Until<'d>>,
    ) -> Result<Frontend<BackendReady>, Error> {
        // One that says Connected has not seen yet that we begin anew, and uses references that may be others by now.
        let ready = [XenbusState::INIT_WAIT, XenbusState::INITIALISED];
        let waited = self
            .device
            .wait_for(xs, deadline.into().deadline(), &mut |state| ready.contains(&state).then_some(Ok(())));
        self.go_on(xs, waited)
    }
}

impl Device {
    /// Begins to watch the backend's state, and notes both sides'.
    fn watch_and_look<P: Platform + Wait>(
        &mut self,
        xs: &mut Xenstore<'_, P>,
        state: &Path,
    ) -> Result<(), Error> {
        let (mut watched, mut ours, mut theirs) = (Ok(()), Ok(XenbusState::UNKNOWN), Err(Error::NotReady));
        let sink: &mut Sink<'_> = &mut |tag, answer| match tag {
            0 => watched = answer.map(drop),
            1 => ours = state_of(answer),
            _ => theirs = state_of(answer),
        };
        xs.link.give_up();
        let asked = xs
            .post_watch(self.watch, state, 0, sink)
            .and_then(|()| xs.post_read(&self.frontend, "state", 1, sink))
            .and_then(|()| xs.post_read(&self.backend, "state", 2, sink))
            .and_then(|()| xs.settle(sink));
        if let Err(error) = asked.and(watched) {
            xs.give_watch_up(self.watch, error);
            return Err(error);
        }
        self.ours.set([ours?; 2]);
        // The first event of a watch is that it was set, before that answer was given. With a second one the state may be another.
        self.seen = Some((theirs?, 1));
        Ok(())
    }

    /// Goes to Initialising, from wherever an earlier kernel of this domain left the device.
    fn begin<P: Platform + Wait>(
        &mut self,
        xs: &mut Xenstore<'_, P>,
        deadline: &mut Deadline,
    ) -> Result<(), Error> {
        let [ours, _] = self.ours.get();
        if let (XenbusState::INITIALISING, Some((XenbusState::INIT_WAIT, _))) = (ours, self.seen) {
            // The toolstack has written it, and the backend has seen it.
            return Ok(());
        }
        if ![XenbusState::UNKNOWN, XenbusState::INITIALISING].contains(&ours) {
            let theirs = self.backend_state(xs)?;
            // A backend that still works for that kernel would take our start for nothing, or be taken for one that is
            // connected to us. It has to see the device end first.
            match theirs {
                XenbusState::INITIALISED | XenbusState::CONNECTED | XenbusState::CLOSING => {
                    match self.end(xs, deadline) {
                        // A backend that does not let go is met again in `wait_for_backend`, which has the error for it.
                        Err(Error::BackendTimedOut(_)) => {}
                        ended => ended?,
                    }
                }
                XenbusState::INIT_WAIT => self.turn_away(xs, deadline)?,
                _ => {}
            }
        }
        if self.enter(xs, XenbusState::INITIALISING, &mut |_| Ok(()))? {
            // The backend may have followed already.
            self.seen = None;
            return Ok(());
        }
        Err(Error::BackendGone(XenbusState::UNKNOWN))
    }

    /// A backend that was started again takes up what it finds in our nodes, and may be about to be connected to that. It
    /// closes when it sees that we did.
    fn turn_away<P: Platform + Wait>(
        &mut self,
        xs: &mut Xenstore<'_, P>,
        deadline: &mut Deadline,
    ) -> Result<(), Error> {
        self.switch(xs, XenbusState::CLOSED)?;
        let limit = deadline.at().min(xs.now().saturating_add(NOTICE));
        let mut notice = Deadline::new(limit);
        let closed = self.wait_for(xs, &mut notice, &mut |state| {
            [XenbusState::CLOSED, XenbusState::UNKNOWN].contains(&state).then_some(Ok(()))
        });
        *deadline = Deadline::new(deadline.at().saturating_add(notice.at().saturating_sub(limit)));
        match closed {
            // One that waits whatever we do has taken up nothing.
            Err(Error::BackendTimedOut(XenbusState::INIT_WAIT)) if deadline.until(xs.now()).is_some() => {
                Ok(())
            }
            closed => closed,
        }
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
    deadline: &mut Deadline,
) -> Result<(Path, DomId), Error> {
    let watch = xs.watch(frontend)?;
    let mut found = Err(Error::BadPath);
    let waited = xs.watch_until(watch, deadline, &mut |xs| {
        found = find_backend(xs, frontend);
        Ok(!matches!(&found, Err(error) if error.is_absent()))
    });
    // What was found counts, and what is left of the watch is ended later.
    let _ = xs.unwatch(watch);
    waited.and(found)
}
