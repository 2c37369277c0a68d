//! Coming up.

use core::cell::Cell;

use xen_hypercall::Platform;
use xen_xenstore::xenbus::{BackendReady, Frontend, Published, XenbusState};

use super::follow;
use super::way::{Ask, frontend, run, task, wait};
use crate::control::Control;
use crate::front::Queues;
use crate::link::Tie;
use crate::terms::{Answers, Terms, write};
use crate::{Config, Error};

/// Finds the device, and its backend ready.
pub(crate) fn open<A: Ask>(
    ask: &mut A,
    index: u32,
    awaited: bool,
) -> task!(Result<Frontend<BackendReady>, Error>) {
    run!({
        let device = if awaited {
            wait!(frontend::open(ask, "vif", index))?
        } else {
            wait!(frontend::open_present(ask, "vif", index))?
        };
        Ok(wait!(frontend::wait_for_backend(device, ask))?)
    })
}

/// What the backend, and the toolstack, say.
pub(crate) fn agree<A: Ask>(
    ask: &mut A,
    device: &Frontend<BackendReady>,
    config: &Config,
    most: usize,
) -> task!(Result<Terms, Error>) {
    run!({
        let mut answers = Answers::new();
        let questions = Answers::questions(device.frontend_path(), device.backend_path());
        wait!(ask.together(questions, |place, answer| answers.note(place, answer)))?;
        answers.terms(config, most)
    })
}

/// Tells the backend of the queues, and of all that was agreed on.
pub(crate) fn offer<'x, P: Platform, A: Ask, const QUEUES: usize>(
    ask: &mut A,
    device: Frontend<BackendReady>,
    config: &Config,
    terms: &Terms,
    queues: &mut Queues<'x, P, QUEUES>,
    control: &mut Option<Control<'x, P>>,
) -> task!(Result<Frontend<Published>, Error>) {
    run!({
        let told = frontend::publish(device, ask, XenbusState::CONNECTED, |changes, path| {
            write(changes, path, config, terms, queues, control)
        });
        Ok(wait!(told)?)
    })
}

/// Waits until the backend has connected, and begins to watch the link.
#[inline(never)]
pub(crate) fn tie<A: Ask>(
    ask: &mut A,
    device: Frontend<Published>,
    follows: bool,
) -> task!(Result<Tie, Error>) {
    run!({
        let device = wait!(frontend::wait_connected(device, ask))?;
        let watches = if follows { wait!(follow::watch_link(ask, &device)) } else { [None; 2] };
        Ok(Tie { device, watches, fresh: Cell::new(true), told: Cell::new(false) })
    })
}
