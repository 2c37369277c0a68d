//! What is said by xenstore when a disk is connected, compiled for either way to wait.
#![allow(clippy::duplicate_mod, reason = "compiled for either way")]

use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::Platform;
use xen_xenstore::Question;
use xen_xenstore::xenbus::{BackendReady, Connected, Frontend, XenbusState};

use super::way::{Ask, frontend, run, task, wait};
use crate::connect::{Begun, Config, Connecting, Link};
use crate::features::{Features, Said};
use crate::lifecycle::Site;
use crate::ops::Ops;
use crate::pool::Pool;
use crate::transport::{Offers, Transport};
use crate::{BlkFront, Error, State};

/// Connects to a disk, up to where its backend has all that it needs.
pub(crate) fn begin<'x, P: Platform, A: Ask>(
    ask: &mut A,
    events: &'x EventChannels<P>,
    grants: &'x GrantTable<P>,
    index: u32,
    config: Config,
) -> task!(Result<Connecting<'x, P>, Error>) {
    run!({
        let device = wait!(frontend::open(ask, "vbd", index))?;
        let device = wait!(frontend::wait_for_backend(device, ask))?;
        let made = Pool::new(grants, device.backend_id(), config.pages)
            .and_then(|pool| Ok((pool, Ops::new(grants.platform(), config.requests)?)));
        let (pool, ops) = match made {
            Ok(made) => made,
            Err(error) => {
                let _ = wait!(frontend::abandon(device, ask));
                return Err(error);
            }
        };
        let begun = wait!(begin_with(ask, device, events, grants, &config))?;
        Ok(Connecting { begun, events, grants, index, pool, ops, config })
    })
}

/// The handshake from a backend that is ready.
pub(crate) fn begin_with<'x, P: Platform, A: Ask>(
    ask: &mut A,
    device: Frontend<BackendReady>,
    events: &'x EventChannels<P>,
    grants: &'x GrantTable<P>,
    config: &Config,
) -> task!(Result<Begun<'x, P>, Error>) {
    run!({
        let made = match wait!(choose(ask, &device, config)) {
            Ok(transport) => {
                let queues = transport.make(events, grants, device.backend_id());
                queues.map(|queues| (transport, queues))
            }
            Err(error) => Err(error),
        };
        let (transport, queues) = match made {
            Ok(made) => made,
            Err(error) => {
                // The first error says more than one on the way out.
                let _ = wait!(frontend::abandon(device, ask));
                return Err(error);
            }
        };
        let published = wait!(frontend::publish(device, ask, XenbusState::INITIALISED, |changes, path| {
            transport.tell(changes, path, &queues, config.persistent)
        }));
        Ok(Begun { device: published?, queues, trusted: transport.trusted })
    })
}

/// The rest, to a disk at work. After an error the backend was told not to go on with pages that are taken away.
pub(crate) fn finish<'x, P: Platform, A: Ask>(
    begun: Begun<'x, P>,
    ask: &mut A,
) -> task!(Result<(Link<'x, P>, Features), Error>) {
    run!({
        let Begun { device, queues, trusted } = begun;
        let device = wait!(frontend::wait_connected(device, ask))?;
        let features = match wait!(features(ask, &device, trusted)) {
            Ok(features) => match wait!(frontend::switch(&device, ask, XenbusState::CONNECTED)) {
                Ok(true) => Ok(features),
                // It was taken away, or made anew.
                Ok(false) => Err(Error::Closed),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error),
        };
        match features {
            Ok(features) => {
                let connected = queues.len();
                Ok((Link { device: Some(device), queues, connected }, features))
            }
            Err(error) => {
                let _ = wait!(frontend::close(device, ask));
                Err(error)
            }
        }
    })
}

/// Waits until the backend has connected.
pub(crate) fn finish_disk<'x, P: Platform, A: Ask>(
    connecting: Connecting<'x, P>,
    ask: &mut A,
) -> task!(Result<BlkFront<'x, P>, Error>) {
    run!({
        let Connecting { begun, events, grants, index, pool, ops, config } = connecting;
        let (link, features) = wait!(finish(begun, ask))?;
        Ok(BlkFront::of(link, features, (events, grants, index, config), (pool, ops)))
    })
}

/// Connects a disk anew, whatever its backend is up to, with all that is under way.
pub(crate) fn reconnect<'x, P: Platform + 'x, A: Ask, S: Site<'x, P>>(
    site: &mut S,
    ask: &mut A,
) -> task!(Result<(), Error>) {
    run!({
        let (was, link) = site.with(BlkFront::unlink)?;
        if let Some(Link { device: Some(device), queues, .. }) = link {
            let ended = match was {
                // Until it has closed it must not see us begin anew.
                State::Connected | State::Closing => wait!(frontend::close(device, ask)),
                _ => wait!(frontend::abandon(device, ask)),
            };
            drop(queues);
            match ended {
                Err(error @ (xen_xenstore::Error::Broken(_) | xen_xenstore::Error::Disconnected(_))) => {
                    return Err(error.into());
                }
                // The new handshake says what is the matter, if anything is.
                _ => {}
            }
        }
        let (events, grants, index, config) = site.with(|front| front.means())?;
        let device = wait!(frontend::open(ask, "vbd", index))?;
        let device = wait!(frontend::wait_for_backend(device, ask))?;
        let backend = device.backend_id();
        match site.with(|front| front.pool.renew(backend, front.ops.all())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) | Err(error) => {
                let _ = wait!(frontend::abandon(device, ask));
                return Err(error);
            }
        }
        let begun = wait!(begin_with(ask, device, events, grants, &config))?;
        let (link, features) = wait!(finish(begun, ask))?;
        site.with(|front| front.go_on_anew(link, features))?
    })
}

/// What of the backend's offers is used.
fn choose<A: Ask>(
    ask: &mut A,
    device: &Frontend<BackendReady>,
    config: &Config,
) -> task!(Result<Transport, Error>) {
    run!({
        let mut offers = Offers::default();
        let questions = Offers::NODES.iter().enumerate().map(|(tag, name)| {
            let own = tag + 1 == Offers::NODES.len();
            Question::read(if own { device.frontend_path() } else { device.backend_path() }, name)
        });
        let questions = questions.chain([Question::directory(device.frontend_path())]);
        wait!(ask.together(questions, |tag, answer| offers.take(tag, answer)))?;
        offers.choose(config)
    })
}

/// What a backend that is connected tells of its disk: before that not all of it need be there. `trusted` is what the toolstack says.
pub(crate) fn features<A: Ask>(
    ask: &mut A,
    device: &Frontend<Connected>,
    trusted: bool,
) -> task!(Result<Features, Error>) {
    run!({
        let mut said = Said::default();
        let questions = Said::NODES.iter().map(|name| Question::read(device.backend_path(), name));
        wait!(ask.together(questions, |index, value| said.take(index, value)))?;
        Features::of(&said, trusted)
    })
}
