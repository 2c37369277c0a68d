//! What becomes of a device that was connected.

use xen_hypercall::Platform;
use xen_xenstore::xenbus::{BackendChange, Connected, Frontend, XenbusState};
use xen_xenstore::{Error as StoreError, Path, Question, Watch};

use super::way::{Ask, frontend, run, task, wait};
use crate::link::{News, Tie};
use crate::{Error, NetFront, State};

/// Looks what the backend has done since the last look, and answers that. Cheap when nothing has happened.
#[inline(never)]
pub(crate) fn follow<A: Ask>(ask: &mut A, tie: &Tie, state: State) -> task!(Result<News, StoreError>) {
    run!({
        let change = wait!(frontend::change(&tie.device, ask))?;
        let news = News::of(change, state);
        let mut changed = false;
        if news.is_at_work() {
            for watch in tie.watches.iter().flatten() {
                changed |= ask.fired(watch)?;
            }
        }
        wait!(answer(ask, tie, state, change, news, changed))
    })
}

/// The same, but asks in any case: whether something has happened was told to somebody else. `told` is whether that was about the
/// backend's state.
#[allow(dead_code, reason = "tasks do")]
pub(crate) fn follow_by_asking<A: Ask>(
    ask: &mut A,
    tie: &Tie,
    state: State,
    told: bool,
) -> task!(Result<News, StoreError>) {
    run!({
        let change = match wait!(frontend::change_by_asking(&tie.device, ask))? {
            // It says what it said before.
            BackendChange::Told(_) if !told => BackendChange::Same,
            change => change,
        };
        let news = News::of(change, state);
        let follows = tie.watches.iter().any(Option::is_some);
        wait!(answer(ask, tie, state, change, news, follows))
    })
}

/// Follows the backend to its new state: our own state is switched accordingly. Reads the link's state if `changed`. Returns what
/// there is to tell the card.
fn answer<A: Ask>(
    ask: &mut A,
    tie: &Tie,
    state: State,
    change: BackendChange,
    mut news: News,
    changed: bool,
) -> task!(Result<News, StoreError>) {
    run!({
        if news.is_at_work() {
            if changed {
                news.up = Some(wait!(look_at_link(ask, &tie.device))?);
            }
        } else if news.state != state && change != BackendChange::Restarted {
            // One that begins again must not be told: it waits for us to begin, too. The device is closed whether this succeeds or not.
            let _ = wait!(frontend::switch(&tie.device, ask, XenbusState::CLOSED));
        }
        Ok(news)
    })
}

/// Begins to watch the nodes that tell of the link. Without a place for a watch the link counts as up, as it does without the
/// nodes.
pub(crate) fn watch_link<A: Ask>(ask: &mut A, device: &Frontend<Connected>) -> task!([Option<Watch>; 2]) {
    run!({
        let paths = [device.backend_path().join("carrier"), device.frontend_path().join("disconnect")];
        match paths {
            [Ok(carrier), Ok(disconnect)] => match wait!(ask.watch_all([&carrier, &disconnect])) {
                Ok(watches) => watches.map(Result::ok),
                Err(_) => [None; 2],
            },
            // A path too long to be there.
            _ => [None; 2],
        }
    })
}

/// Whether the link is up.
fn look_at_link<A: Ask>(ask: &mut A, device: &Frontend<Connected>) -> task!(Result<bool, StoreError>) {
    run!({
        let carrier = device.backend_path().join("carrier")?;
        let disconnect = device.frontend_path().join("disconnect")?;
        // What is no number says nothing.
        let read = wait!(ask.read_all::<u32, 2>("", [&carrier, &disconnect]));
        let [carrier, disconnect] = read.map(|values| values.map(Result::ok)).unwrap_or_default();
        Ok(carrier != Some(0) && disconnect.unwrap_or(0) == 0)
    })
}

/// Ends a device that may be at work, and gives up what is shared with the backend.
pub(crate) fn end<P: Platform, A: Ask, const QUEUES: usize>(
    ask: &mut A,
    front: &mut NetFront<'_, P, QUEUES>,
    tie: Option<Tie>,
) -> task!(Result<(), Error>) {
    run!({
        let closed = match tie {
            None => Ok(()),
            Some(tie) => {
                // A backend that is not connected any more would be waited for in vain. An error comes again below.
                if front.state != State::Closed {
                    if let Ok(news) = wait!(follow(ask, &tie, front.state)) {
                        front.heed(news);
                    }
                }
                wait!(part(ask, tie, front.state == State::Closed))
            }
        };
        // Only now: before, the backend had every right to the pages.
        front.release();
        Ok(closed?)
    })
}

/// Ends what ties a device to its backend, of which one is `closed` already.
pub(crate) fn part<A: Ask>(ask: &mut A, tie: Tie, closed: bool) -> task!(Result<(), StoreError>) {
    run!({
        for watch in tie.watches.into_iter().flatten() {
            let _ = wait!(ask.unwatch(watch));
        }
        if closed {
            wait!(frontend::abandon(tie.device, ask))
        } else {
            wait!(frontend::close(tie.device, ask))
        }
    })
}

/// The directory of the device's backend.
#[allow(dead_code, reason = "tasks ask for it")]
pub(crate) fn backend<A: Ask>(ask: &mut A, index: u32) -> task!(Result<Path, StoreError>) {
    run!({
        let path = Path::format(format_args!("device/vif/{index}/backend"))?;
        let mut backend = Err(StoreError::BadPath);
        wait!(ask.together([Question::read("", &path)], |_, answer| {
            backend = answer.and_then(crate::lifecycle::text).and_then(Path::new);
        }))?;
        backend
    })
}

/// Writes whether multicast frames are to be filtered.
pub(crate) fn filter<A: Ask>(
    ask: &mut A,
    device: &Frontend<Connected>,
    filter: bool,
) -> task!(Result<(), StoreError>) {
    run!({
        let path = device.frontend_path().join("request-multicast-control")?;
        let value: &[u8] = if filter { b"1" } else { b"0" };
        wait!(ask.order(Question::write(&path, value)))
    })
}
