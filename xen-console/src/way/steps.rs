//! The conversation with xenstore about a console.

use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::Platform;
use xen_xenstore::xenbus::{Connected, Frontend, Initialising, Published, XenbusState};

use super::way::{Ask, frontend, run, task, wait};
use crate::secondary::share;
use crate::{Console, Error};

/// The handshake, from the beginning to the end. When it fails, nothing is left.
pub(crate) fn bring_up<'x, P: Platform, A: Ask>(
    ask: &mut A,
    events: &'x EventChannels<P>,
    grants: &'x GrantTable<P>,
    index: u32,
) -> task!(Result<(Console<'x, P>, Frontend<Connected>), Error>) {
    run!({
        let device = wait!(frontend::open(ask, "console", index))?;
        let (console, device) = wait!(begin(ask, device, events, grants))?;
        let device = wait!(finish(ask, device))?;
        Ok((console, device))
    })
}

/// The first half, up to where the backend has all that it needs.
pub(crate) fn begin<'x, P: Platform, A: Ask>(
    ask: &mut A,
    device: Frontend<Initialising>,
    events: &'x EventChannels<P>,
    grants: &'x GrantTable<P>,
) -> task!(Result<(Console<'x, P>, Frontend<Published>), Error>) {
    run!({
        let device = wait!(frontend::wait_for_backend(device, ask))?;
        let (console, gref) = match share(&device, events, grants) {
            Ok(shared) => shared,
            Err(error) => {
                // The first error says more than one on the way out.
                let _ = wait!(frontend::abandon(device, ask));
                return Err(error);
            }
        };
        let port = console.channel().port();
        let told = frontend::publish(device, ask, XenbusState::INITIALISED, |changes, path| {
            changes.write_display(&path.join("ring-ref")?, gref)?;
            changes.write_display(&path.join("port")?, port.0)
        });
        let device = wait!(told)?;
        Ok((console, device))
    })
}

pub(crate) fn finish<A: Ask>(
    ask: &mut A,
    device: Frontend<Published>,
) -> task!(Result<Frontend<Connected>, Error>) {
    run!({
        let device = wait!(frontend::wait_connected(device, ask))?;
        if let Err(error) = wait!(frontend::switch(&device, ask, XenbusState::CONNECTED)) {
            let _ = wait!(frontend::abandon(device, ask));
            return Err(error.into());
        }
        Ok(device)
    })
}

/// Follows the backend. Returns whether it has ended the console, or is gone; then it was told so.
pub(crate) fn follow<A: Ask>(ask: &mut A, device: &Frontend<Connected>) -> task!(Result<bool, Error>) {
    run!({
        let over = wait!(frontend::change(device, ask))?.is_over();
        if over {
            // Writes nothing into the directory of a device that was taken away, or that is another's by now. If the backend cannot
            // be told now, it is when the device is ended.
            let _ = wait!(frontend::switch(device, ask, XenbusState::CLOSED));
        }
        Ok(over)
    })
}

/// Ends what there is with a backend, which knows of the end already if it is not `at_work`.
pub(crate) fn end<A: Ask>(
    ask: &mut A,
    device: Frontend<Connected>,
    at_work: bool,
) -> task!(Result<(), Error>) {
    run!({
        // Told already, or nobody is there to tell; then only the watch is left.
        let ended =
            if at_work { wait!(frontend::close(device, ask)) } else { wait!(frontend::abandon(device, ask)) };
        Ok(ended?)
    })
}
