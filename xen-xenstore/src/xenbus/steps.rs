//! The steps of a device's handshake, compiled for either way to wait. What they do the methods of [`Frontend`] tell that have their
//! names.

use core::cell::Cell;
use core::marker::PhantomData;
use core::str::FromStr;
use core::time::Duration;

use xen_hypercall::DomId;

use super::{Ask, run, task, wait};
use crate::nodes::{optional, parse, text};
use crate::xenbus::device::{Device, Owner, state_of};
use crate::xenbus::frontend::{BackendReady, Connected, Initialising, Published};
use crate::xenbus::{BackendChange, Entry, Frontend, XenbusState};
use crate::{Changes, Error, Path, Question, Watch};

/// How long a backend that waits may take to notice that the device is closed.
const NOTICE: Duration = Duration::from_secs(2);

/// [`Frontend::open`].
///
/// # Errors
/// As [`Frontend::open`].
pub fn open<A: Ask>(ask: &mut A, kind: &str, index: u32) -> task!(Result<Frontend<Initialising>, Error>) {
    run!({ wait!(begin(ask, kind, index, true)) })
}

/// [`Frontend::open_present`].
///
/// # Errors
/// As [`Frontend::open_present`].
pub fn open_present<A: Ask>(
    ask: &mut A,
    kind: &str,
    index: u32,
) -> task!(Result<Frontend<Initialising>, Error>) {
    run!({ wait!(begin(ask, kind, index, false)) })
}

/// [`Frontend::wait_for_backend`].
///
/// # Errors
/// As [`Frontend::wait_for_backend`].
pub fn wait_for_backend<A: Ask>(
    device: Frontend<Initialising>,
    ask: &mut A,
) -> task!(Result<Frontend<BackendReady>, Error>) {
    run!({
        let mut device = device.device;
        ask.adopt(device.watch);
        // One that says Connected has not seen yet that we begin anew, and uses references that may be others by now.
        let ready = [XenbusState::INIT_WAIT, XenbusState::INITIALISED];
        let waited =
            wait!(wait_for(&mut device, ask, None, &mut |state| ready.contains(&state).then_some(Ok(()))));
        wait!(go_on(device, ask, waited))
    })
}

/// [`Frontend::publish`]. `changes` makes the same changes each time it runs.
///
/// # Errors
/// As [`Frontend::publish`].
pub fn publish<A: Ask>(
    device: Frontend<BackendReady>,
    ask: &mut A,
    next: XenbusState,
    mut changes: impl FnMut(&mut Changes<'_>, &Path) -> Result<(), Error>,
) -> task!(Result<Frontend<Published>, Error>) {
    run!({
        let device = device.device;
        ask.adopt(device.watch);
        let frontend = device.frontend;
        let entered = wait!(enter(&device, ask, next, &mut |sent| changes(sent, &frontend)));
        wait!(published(device, ask, entered))
    })
}

/// [`Frontend::is_decided`].
///
/// # Errors
/// As [`Frontend::is_decided`].
pub fn is_decided<A: Ask>(device: &mut Frontend<Published>, ask: &mut A) -> task!(Result<bool, Error>) {
    run!({
        let state = wait!(see(&mut device.device, ask))?;
        Ok(state == XenbusState::CONNECTED || state.is_gone())
    })
}

/// [`Frontend::wait_connected`].
///
/// # Errors
/// As [`Frontend::wait_connected`].
pub fn wait_connected<A: Ask>(
    device: Frontend<Published>,
    ask: &mut A,
) -> task!(Result<Frontend<Connected>, Error>) {
    run!({
        let mut device = device.device;
        ask.adopt(device.watch);
        let waited = wait!(wait_for(&mut device, ask, None, &mut |state| match state {
            XenbusState::CONNECTED => Some(Ok(())),
            state if state.is_gone() => Some(Err(Error::BackendGone(state))),
            _ => None,
        }));
        if waited.is_err() {
            // The backend must not begin to use what the driver is about to take away.
            let _ = wait!(set_state(&device, ask, XenbusState::CLOSED));
        }
        wait!(go_on(device, ask, waited))
    })
}

/// [`Frontend::change`].
///
/// # Errors
/// As [`Frontend::change`].
pub fn change<A: Ask>(device: &Frontend<Connected>, ask: &mut A) -> task!(Result<BackendChange, Error>) {
    run!({
        let own = &device.device;
        let known = match own.change.get() {
            // The end may be near, or here.
            change @ (BackendChange::Same | BackendChange::Closing) => change,
            ended => return Ok(ended),
        };
        if !ask.has_fired(own.watch)? || own.seen.is_some_and(|(_, at)| at == ask.events(own.watch)) {
            // That event came before the handshake looked last.
            return Ok(known);
        }
        wait!(change_by_asking(device, ask))
    })
}

/// [`Frontend::change_by_asking`].
///
/// # Errors
/// As [`Frontend::change`].
pub fn change_by_asking<A: Ask>(
    device: &Frontend<Connected>,
    ask: &mut A,
) -> task!(Result<BackendChange, Error>) {
    run!({
        let own = &device.device;
        let known = match own.change.get() {
            change @ (BackendChange::Same | BackendChange::Closing) => change,
            ended => return Ok(ended),
        };
        let looked = wait!(look(own, ask));
        match looked {
            Err(_) => ask.mark(own.watch),
            Ok(change) if change.is_over() => own.change.set(change),
            Ok(_) if known == BackendChange::Closing => return Ok(known),
            Ok(_) => {}
        }
        looked
    })
}

/// [`Frontend::close`].
///
/// # Errors
/// As [`Frontend::close`].
pub fn close<A: Ask>(device: Frontend<Connected>, ask: &mut A) -> task!(Result<(), Error>) {
    run!({
        let mut device = device.device;
        ask.adopt(device.watch);
        let closed = wait!(end(&mut device, ask));
        // If that fails the watch is ended later.
        let _ = wait!(ask.end_watch(device.watch));
        closed
    })
}

/// [`Frontend::backend_state`].
///
/// # Errors
/// As [`Frontend::backend_state`].
pub fn backend_state<S, A: Ask>(device: &Frontend<S>, ask: &mut A) -> task!(Result<XenbusState, Error>) {
    run!({ wait!(their_state(&device.device, ask)) })
}

/// [`Frontend::switch`].
///
/// # Errors
/// As [`Frontend::switch`].
pub fn switch<S, A: Ask>(
    device: &Frontend<S>,
    ask: &mut A,
    state: XenbusState,
) -> task!(Result<bool, Error>) {
    run!({ wait!(set_state(&device.device, ask, state)) })
}

/// [`Frontend::read_backend`].
///
/// # Errors
/// As [`Frontend::read_backend`].
pub fn read_backend<S, A: Ask, T: FromStr>(
    device: &Frontend<S>,
    ask: &mut A,
    key: &str,
) -> task!(Result<Option<T>, Error>) {
    run!({
        let path = device.backend_path().join(key)?;
        wait!(ask.read_optional(&path))
    })
}

/// [`Frontend::read_frontend`].
///
/// # Errors
/// As [`Frontend::read_frontend`].
pub fn read_frontend<S, A: Ask, T: FromStr>(
    device: &Frontend<S>,
    ask: &mut A,
    key: &str,
) -> task!(Result<Option<T>, Error>) {
    run!({
        let path = device.frontend_path().join(key)?;
        wait!(ask.read_optional(&path))
    })
}

/// [`Frontend::read_backend_all`].
///
/// # Errors
/// As [`Frontend::read_backend_all`].
pub fn read_backend_all<S, A: Ask, T: FromStr, const N: usize>(
    device: &Frontend<S>,
    ask: &mut A,
    keys: [&str; N],
) -> task!(Result<[Result<Option<T>, Error>; N], Error>) {
    run!({ Ok(wait!(ask.read_all(device.backend_path(), keys))?.map(optional)) })
}

/// [`Frontend::abandon`].
///
/// # Errors
/// As [`Frontend::abandon`].
pub fn abandon<S, A: Ask>(device: Frontend<S>, ask: &mut A) -> task!(Result<(), Error>) {
    run!({
        let device = device.device;
        ask.adopt(device.watch);
        let switched = wait!(set_state(&device, ask, XenbusState::CLOSED));
        // If that fails the watch is ended later.
        let _ = wait!(ask.end_watch(device.watch));
        switched.map(drop)
    })
}

/// [`Frontend::forget`].
///
/// # Errors
/// As [`Frontend::forget`].
pub fn forget<S, A: Ask>(device: Frontend<S>, ask: &mut A) -> Result<(), Error> {
    // Nobody waits for the daemon to end it.
    ask.drop_watch(device.device.watch);
    ask.look()
}

/// Finds a device, which may be waited for, and begins its handshake.
fn begin<A: Ask>(
    ask: &mut A,
    kind: &str,
    index: u32,
    wait: bool,
) -> task!(Result<Frontend<Initialising>, Error>) {
    run!({
        let frontend = Path::format(format_args!("device/{kind}/{index}"))?;
        ask.resume();
        let found = match wait!(find_backend(ask, &frontend)) {
            Err(error) if wait && error.is_absent() => wait!(await_backend(ask, &frontend)),
            found => found,
        };
        let (backend, backend_id) = found?;
        let state = backend.join("state")?;
        let watch = wait!(ask.take_place(&state))?;
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
        let begun = match wait!(watch_and_look(&mut device, ask, &state)) {
            Ok(()) => wait!(start(&mut device, ask)),
            Err(error) => Err(error),
        };
        match begun {
            Ok(()) => Ok(Frontend { device, _state: PhantomData }),
            Err(error) => {
                // The first error says more than one about the watch.
                let _ = wait!(ask.end_watch(device.watch));
                Err(error)
            }
        }
    })
}

/// Begins to watch the backend's state, and notes both sides'.
fn watch_and_look<A: Ask>(device: &mut Device, ask: &mut A, state: &Path) -> task!(Result<(), Error>) {
    run!({
        let (mut watched, mut ours, mut theirs) = (Ok(()), Ok(XenbusState::UNKNOWN), Err(Error::NotReady));
        let questions = [
            Question::watch(device.watch, state),
            Question::read(&device.frontend, "state"),
            Question::read(&device.backend, "state"),
        ];
        let asked = wait!(ask.ask_all(&mut questions.into_iter(), &mut |tag, answer| match tag {
            0 => watched = answer.map(drop),
            1 => ours = state_of(answer),
            _ => theirs = state_of(answer),
        }));
        if let Err(error) = asked.and(watched) {
            ask.give_watch_up(device.watch, error);
            return Err(error);
        }
        device.ours.set([ours?; 2]);
        // The first event of a watch is that it was set, before that answer was given. With a second one the state may be another.
        device.seen = Some((theirs?, 1));
        Ok(())
    })
}

/// Goes to Initialising, from wherever an earlier kernel of this domain left the device.
fn start<A: Ask>(device: &mut Device, ask: &mut A) -> task!(Result<(), Error>) {
    run!({
        let [ours, _] = device.ours.get();
        if let (XenbusState::INITIALISING, Some((XenbusState::INIT_WAIT, _))) = (ours, device.seen) {
            // The toolstack has written it, and the backend has seen it.
            return Ok(());
        }
        if ![XenbusState::UNKNOWN, XenbusState::INITIALISING].contains(&ours) {
            let theirs = wait!(their_state(device, ask))?;
            // A backend that still works for that kernel would take our start for nothing, or be taken for one that is
            // connected to us. It has to see the device end first.
            match theirs {
                XenbusState::INITIALISED | XenbusState::CONNECTED | XenbusState::CLOSING => {
                    match wait!(end(device, ask)) {
                        // A backend that does not let go is met again in `wait_for_backend`, which has the error for it.
                        Err(Error::BackendTimedOut(_)) => {}
                        ended => ended?,
                    }
                }
                XenbusState::INIT_WAIT => wait!(turn_away(device, ask))?,
                _ => {}
            }
        }
        if wait!(set_state(device, ask, XenbusState::INITIALISING))? {
            // The backend may have followed already.
            device.seen = None;
            return Ok(());
        }
        Err(Error::BackendGone(XenbusState::UNKNOWN))
    })
}

/// A backend that was started again takes up what it finds in our nodes, and may be about to be connected to that. It
/// closes when it sees that we did.
fn turn_away<A: Ask>(device: &mut Device, ask: &mut A) -> task!(Result<(), Error>) {
    run!({
        wait!(set_state(device, ask, XenbusState::CLOSED))?;
        let mut notice = ask.notice(NOTICE);
        let closed = wait!(wait_for(device, ask, Some(&mut notice), &mut |state| {
            [XenbusState::CLOSED, XenbusState::UNKNOWN].contains(&state).then_some(Ok(()))
        }));
        let has_time = ask.noticed(notice);
        match closed {
            // One that waits whatever we do has taken up nothing.
            Err(Error::BackendTimedOut(XenbusState::INIT_WAIT)) if has_time => Ok(()),
            closed => closed,
        }
    })
}

fn find_backend<A: Ask>(ask: &mut A, frontend: &Path) -> task!(Result<(Path, DomId), Error>) {
    run!({
        let (mut backend, mut id) = (Err(Error::BadPath), Err(Error::BadValue));
        let questions = [Question::read(frontend, "backend"), Question::read(frontend, "backend-id")];
        wait!(ask.ask_all(&mut questions.into_iter(), &mut |index, value| match index {
            0 => backend = value.and_then(text).and_then(Path::new),
            _ => id = value.and_then(parse),
        }))?;
        Ok((backend?, DomId(id?)))
    })
}

/// The toolstack may still be writing.
fn await_backend<A: Ask>(ask: &mut A, frontend: &Path) -> task!(Result<(Path, DomId), Error>) {
    run!({
        let watch = wait!(ask.watch(frontend))?;
        let mut in_time = true;
        let found = loop {
            let found = wait!(find_backend(ask, frontend));
            if !matches!(&found, Err(error) if error.is_absent()) || !in_time {
                break found;
            }
            match wait!(next_look(ask, watch, None)) {
                Ok(Some(looks)) => in_time = looks,
                Ok(None) => break found,
                Err(error) => break Err(error),
            }
        };
        // What was found counts, and what is left of the watch is ended later.
        let _ = wait!(ask.end_watch(watch));
        found
    })
}

/// Waits for the next look. Returns whether there is time for others after it; `None` when there is nothing to look at any more.
fn next_look<A: Ask>(
    ask: &mut A,
    watch: Watch,
    notice: Option<&mut A::Notice>,
) -> task!(Result<Option<bool>, Error>) {
    run!({
        let in_time = wait!(ask.wait_event(watch, notice))?;
        // What happened during the last look is looked at: once.
        Ok((in_time || ask.has_fired(watch)?).then_some(in_time))
    })
}

/// The backend's state, as [`state_of`] sees it.
fn their_state<A: Ask>(device: &Device, ask: &mut A) -> task!(Result<XenbusState, Error>) {
    run!({
        let mut state = Ok(XenbusState::UNKNOWN);
        let mut question = core::iter::once(Question::read(&device.backend, "state"));
        wait!(ask.ask_all(&mut question, &mut |_, answer| state = state_of(answer)))?;
        state
    })
}

/// Looks at both sides at once.
fn look<A: Ask>(device: &Device, ask: &mut A) -> task!(Result<BackendChange, Error>) {
    run!({
        let (mut theirs, mut owner) = (Ok(XenbusState::UNKNOWN), Ok(Owner::Nobody));
        let questions = [Question::read(&device.backend, "state"), Question::read(&device.frontend, "state")];
        wait!(ask.ask_all(&mut questions.into_iter(), &mut |tag, answer| match tag {
            0 => theirs = state_of(answer),
            _ => owner = device.owner(answer),
        }))?;
        let theirs = theirs?;
        Ok(match owner? {
            Owner::Us(_) => BackendChange::of(theirs),
            Owner::Nobody => BackendChange::Gone,
            Owner::Another => BackendChange::Restarted,
        })
    })
}

/// Goes to a state, with what `changes` writes, unless the device is not ours any more.
fn enter<A: Ask>(
    device: &Device,
    ask: &mut A,
    next: XenbusState,
    changes: &mut dyn FnMut(&mut Changes<'_>) -> Result<(), Error>,
) -> task!(Result<bool, Error>) {
    run!({
        let entry = Entry::new(device, next)?;
        let entered = wait!(ask.transact(&entry, changes));
        entry.conclude(entered)
    })
}

/// Sets our own state, unless the device is not ours any more.
fn set_state<A: Ask>(device: &Device, ask: &mut A, state: XenbusState) -> task!(Result<bool, Error>) {
    run!({ wait!(enter(device, ask, state, &mut |_| Ok(()))) })
}

/// What became of a device whose backend was to be told what it needs.
pub(crate) fn published<A: Ask>(
    device: Device,
    ask: &mut A,
    entered: Result<bool, Error>,
) -> task!(Result<Frontend<Published>, Error>) {
    run!({
        let published = match entered {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::BackendGone(XenbusState::UNKNOWN)),
            Err(error) => {
                // The backend must not begin to use what the driver is about to take away.
                let _ = wait!(set_state(&device, ask, XenbusState::CLOSED));
                Err(error)
            }
        };
        wait!(go_on(device, ask, published))
    })
}

/// The device in its next state, or its end.
fn go_on<A: Ask, T>(
    device: Device,
    ask: &mut A,
    result: Result<(), Error>,
) -> task!(Result<Frontend<T>, Error>) {
    run!({
        if let Err(error) = result {
            // The first error says more than one about the watch.
            let _ = wait!(ask.end_watch(device.watch));
            return Err(error);
        }
        Ok(Frontend { device, _state: PhantomData })
    })
}

/// Takes the device to its end, as far as the backend follows. Our own state is Closed at the end, whatever fails before.
fn end<A: Ask>(device: &mut Device, ask: &mut A) -> task!(Result<(), Error>) {
    run!({
        let let_go = match wait!(set_state(device, ask, XenbusState::CLOSING)) {
            // Who took the device away has closed it.
            Ok(false) => return Ok(()),
            Ok(true) => {
                wait!(wait_for(device, ask, None, &mut |state| state.is_gone().then_some(Ok(()))))
            }
            Err(error) => Err(error),
        };
        let closed = wait!(set_state(device, ask, XenbusState::CLOSED));
        let_go?;
        if !closed? {
            return Ok(());
        }
        let done = [XenbusState::CLOSED, XenbusState::UNKNOWN, XenbusState::INIT_WAIT];
        wait!(wait_for(device, ask, None, &mut |state| done.contains(&state).then_some(Ok(()))))
    })
}

/// The backend's state. Asks only if something has happened since it was asked for last.
fn see<A: Ask>(device: &mut Device, ask: &mut A) -> task!(Result<XenbusState, Error>) {
    run!({
        ask.look()?;
        let events = ask.events(device.watch);
        let state = match device.seen.filter(|(_, at)| *at == events) {
            Some((state, _)) => state,
            None => wait!(their_state(device, ask))?,
        };
        device.seen = Some((state, events));
        Ok(state)
    })
}

/// Waits until `decide` likes the backend's state, or until the time is up, that of the conversation or that of `notice`.
fn wait_for<A: Ask>(
    device: &mut Device,
    ask: &mut A,
    mut notice: Option<&mut A::Notice>,
    decide: &mut dyn FnMut(XenbusState) -> Option<Result<(), Error>>,
) -> task!(Result<(), Error>) {
    run!({
        let mut in_time = true;
        loop {
            let state = wait!(see(device, ask))?;
            match decide(state) {
                Some(outcome) => return outcome,
                None if !in_time => return Err(Error::BackendTimedOut(state)),
                None => {}
            }
            match wait!(next_look(ask, device.watch, notice.as_deref_mut()))? {
                Some(looks) => in_time = looks,
                None => return Err(Error::BackendTimedOut(state)),
            }
        }
    })
}
