//! Consoles beside the first one, which are devices like others (`docs/misc/console.txt`).

use core::fmt;
use core::time::Duration;

use xen_evtchn::{Deadline, EventChannels};
use xen_gnttab::{Access, GrantTable};
use xen_hypercall::{Platform, Wait};
use xen_xenstore::shared::{Client, Conversation};
use xen_xenstore::suspend::Device;
use xen_xenstore::xenbus::{BackendReady, Connected, Frontend, Published, XenbusState};
use xen_xenstore::{Blocking, Path, Until, Xenstore};

use crate::page::ConsolePage;
use crate::way::blocking::steps as blocking;
use crate::way::tasks::steps as tasks;
use crate::{Console, Error, Stats, Violation};

/// How a [`SecondaryConsole`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum State {
    /// At work.
    Connected,
    /// The backend has ended the console, is gone, or begins anew. [`SecondaryConsole::reconnect`] does so, too.
    Closed,
    /// The backend broke the protocol.
    Broken(Violation),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("connected"),
            Self::Closed => f.write_str("closed by the backend"),
            Self::Broken(violation) => write!(f, "broken: {violation}"),
        }
    }
}

/// A console with a number: `device/console/<index>` in xenstore. The first console of a domain, number 0, is none of
/// these but [`Console::new`].
///
/// The toolstack's configuration adds them (`channel` and `serial` in `xl.cfg`); QEMU serves them. The backend may go and come
/// back: [`service`](Self::service) notices, and [`reconnect`](Self::reconnect) begins anew. [`close`](Self::close) ends the
/// console. Dropping it closes the event channel and ends the grant, but does not tell the backend.
pub struct SecondaryConsole<'x, P: Platform> {
    console: Console<'x, P>,
    /// None when the device was given up, and not connected since.
    device: Option<Frontend<Connected>>,
    /// The device is connected, as far as xenstore was asked.
    connected: bool,
    grants: &'x GrantTable<P>,
    index: u32,
}

impl<'x, P: Platform + Wait> SecondaryConsole<'x, P> {
    /// Connects console `index`, and waits for its backend until `deadline`: a time of the platform's clock, or a
    /// `&mut Deadline`. Pauses of the guest do not count.
    ///
    /// # Errors
    /// [`Error::NoConsole`] for number 0; [`Error::Xenstore`] when there is no such console or its backend does not
    /// come; [`Error::Grant`] and [`Error::Event`] when resources are short. Nothing is left behind.
    pub fn connect<'d>(
        xs: &mut Xenstore<'x, P>,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
        deadline: impl Into<Until<'d>>,
    ) -> Result<Self, Error> {
        if index == 0 {
            return Err(Error::NoConsole);
        }
        let mut ask = Blocking::until(xs, deadline);
        let (console, device) = blocking::bring_up(&mut ask, events, grants, index)?;
        Ok(Self { console, device: Some(device), connected: true, grants, index })
    }

    /// Connects to the backend anew: to one that was started again or moved to another domain, to a console that was
    /// unplugged and plugged in again, or after the backend broke the protocol. Waits for the backend until `deadline` on
    /// the platform's clock.
    ///
    /// What the last backend did not take is written to the next one first. What it typed and nobody read is lost.
    ///
    /// # Errors
    /// As [`connect`](Self::connect). The console is [`State::Closed`] then, and this may be called again.
    pub fn reconnect<'d>(
        &mut self,
        xs: &mut Xenstore<'x, P>,
        deadline: impl Into<Until<'d>>,
    ) -> Result<(), Error> {
        self.reconnect_until(xs, deadline.into().deadline())
    }

    fn reconnect_until(&mut self, xs: &mut Xenstore<'x, P>, deadline: &mut Deadline) -> Result<(), Error> {
        // The backend may hang, or be gone; that is often why this is called.
        let _ = self.end(xs, &mut *deadline);
        let events = self.console.event_channels();
        let mut ask = Blocking::until(xs, deadline);
        let connected = blocking::bring_up(&mut ask, events, self.grants, self.index)?;
        self.succeed(connected)
    }

    /// Whether a backend waits for this console, so that [`reconnect`](Self::reconnect) would not wait long. Asks xenstore:
    /// for a console that is not at work, when xenstore has an event.
    ///
    /// # Errors
    /// [`Error::Xenstore`] when the connection to xenstore is of no use any more.
    pub fn is_backend_waiting(&self, xs: &mut Xenstore<'x, P>) -> Result<bool, Error> {
        let path = Path::format(format_args!("device/console/{}/backend", self.index))?;
        let state = xs.read_str(&path).and_then(Path::new).and_then(|backend| backend.join("state"));
        match state.and_then(|state| xs.read_parsed::<XenbusState>(&state)) {
            Ok(state) => Ok(matches!(state, XenbusState::INITIALISING | XenbusState::INIT_WAIT)),
            // There is none, or no sense in it.
            Err(xen_xenstore::Error::Refused(..) | xen_xenstore::Error::BadValue) => Ok(false),
            Err(xen_xenstore::Error::NotText | xen_xenstore::Error::BadPath) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Follows the backend: when it ends the console, or is not the one any more that was connected, the console is
    /// [`State::Closed`], and the backend is told so. Cheap unless the backend's state has changed; to be called when xenstore
    /// has an event.
    ///
    /// # Errors
    /// [`Error::Xenstore`] when xenstore cannot be asked; the next call asks again.
    pub fn service(&mut self, xs: &mut Xenstore<'x, P>) -> Result<State, Error> {
        let Some(device) = self.device.as_ref().filter(|_| self.connected) else { return Ok(self.state()) };
        self.connected = !blocking::follow(&mut Blocking::new(xs), device)?;
        Ok(self.state())
    }

    /// Ends the console; what it wrote and nobody took is lost. The page goes to the grant table's quarantine when
    /// the backend keeps it.
    ///
    /// # Errors
    /// [`Error::Xenstore`] when the backend did not follow by `deadline`; the console is closed all the same.
    pub fn close<'d>(
        mut self,
        xs: &mut Xenstore<'x, P>,
        deadline: impl Into<Until<'d>>,
    ) -> Result<(), Error> {
        // The page goes with `self`, and only then: before, the backend had every right to it.
        self.end(xs, deadline.into().deadline())
    }

    /// Ends what there is with a backend. The page stays.
    fn end(&mut self, xs: &mut Xenstore<'x, P>, deadline: &mut Deadline) -> Result<(), Error> {
        // A backend that is not connected any more would be waited for in vain. An error comes again below.
        let _ = self.service(xs);
        let was = core::mem::replace(&mut self.connected, false);
        let Some(device) = self.device.take() else { return Ok(()) };
        blocking::end(&mut Blocking::until(xs, deadline), device, was)
    }
}

/// For tasks, by a connection to xenstore that they share. There are no deadlines: who does not want to wait any longer drops the
/// future.
impl<'x, P: Platform + Wait> SecondaryConsole<'x, P> {
    /// Connects console `index`, as [`connect`](Self::connect). When it is dropped nothing is left behind.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_by(
        client: Client<'_, 'x, P>,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
    ) -> Result<Self, Error> {
        if index == 0 {
            return Err(Error::NoConsole);
        }
        let mut ask = client.conversation();
        let (console, device) = tasks::bring_up(&mut ask, events, grants, index).await?;
        ask.leave();
        Ok(Self { console, device: Some(device), connected: true, grants, index })
    }

    /// Connects to the backend anew, as [`reconnect`](Self::reconnect). When it is dropped the console is [`State::Closed`], and what
    /// the last backend did not take is kept for the next.
    ///
    /// # Errors
    /// As [`reconnect`](Self::reconnect).
    pub async fn reconnect_by(&mut self, client: Client<'_, 'x, P>) -> Result<(), Error> {
        let mut ask = client.conversation();
        // The backend may be gone; that is often why this is called.
        let _ = self.end_by(&mut ask).await;
        let events = self.console.event_channels();
        let connected = tasks::bring_up(&mut ask, events, self.grants, self.index).await?;
        ask.leave();
        self.succeed(connected)
    }

    /// Follows the backend, as [`service`](Self::service).
    ///
    /// # Errors
    /// As [`service`](Self::service).
    pub async fn service_by(&mut self, client: Client<'_, 'x, P>) -> Result<State, Error> {
        let Some(device) = self.device.as_ref().filter(|_| self.connected) else { return Ok(self.state()) };
        self.connected = !tasks::follow(&mut client.conversation(), device).await?;
        Ok(self.state())
    }

    /// Ends the console, as [`close`](Self::close).
    ///
    /// # Errors
    /// As [`close`](Self::close).
    pub async fn close_by(mut self, client: Client<'_, 'x, P>) -> Result<(), Error> {
        // The page goes with `self`, and only then: before, the backend had every right to it.
        self.end_by(&mut client.conversation()).await
    }

    async fn end_by(&mut self, ask: &mut Conversation<'_, 'x, P>) -> Result<(), Error> {
        // A backend that is not connected any more would be waited for in vain. An error comes again below.
        let _ = self.service_by(ask.client()).await;
        let was = core::mem::replace(&mut self.connected, false);
        let Some(device) = self.device.take() else { return Ok(()) };
        tasks::end(ask, device, was).await
    }
}

impl<'x, P: Platform> SecondaryConsole<'x, P> {
    /// Goes on with a console that was connected just now.
    fn succeed(&mut self, (console, device): (Console<'x, P>, Frontend<Connected>)) -> Result<(), Error> {
        let mut earlier = core::mem::replace(&mut self.console, console);
        (self.device, self.connected) = (Some(device), true);
        self.console.go_on_from(&mut earlier)
    }

    /// The console itself, while it is at work.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`service`](Self::service) found that the backend has ended it; [`Error::Broken`] when the
    /// backend broke the protocol.
    pub fn console(&mut self) -> Result<&mut Console<'x, P>, Error> {
        match self.state() {
            State::Connected => Ok(&mut self.console),
            State::Closed => Err(Error::Closed),
            State::Broken(violation) => Err(Error::Broken(violation)),
        }
    }

    /// How the console is, as far as xenstore was [asked](Self::service).
    pub fn state(&self) -> State {
        match self.console.violation() {
            _ if !self.connected => State::Closed,
            Some(violation) => State::Broken(violation),
            None => State::Connected,
        }
    }

    /// What passed since the console was connected first.
    pub fn stats(&self) -> Stats {
        self.console.stats()
    }

    /// The console's number.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The device's paths and its backend; none while there is no handshake between them.
    pub fn device(&self) -> Option<&Frontend<Connected>> {
        self.device.as_ref()
    }
}

/// What the last backend did not take is written to the next one first, as by
/// [`reconnect`](SecondaryConsole::reconnect). A console that was not at work is connected if it is there.
impl<'x, P: Platform + Wait> Device<'x, P> for SecondaryConsole<'x, P> {
    type Begun = (bool, Option<(Console<'x, P>, Frontend<Published>)>);

    fn quiesce(&mut self, xs: &mut Xenstore<'x, P>) {
        // What cannot be found out now shows afterwards.
        let _ = self.service(xs);
        let _ = self.console.announce();
        // How far the daemon has read is to be known afterwards.
        self.console.mark_written();
    }

    fn begin(&mut self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> Self::Begun {
        let was = core::mem::replace(&mut self.connected, false);
        if let Some(device) = self.device.take() {
            // If that fails the watch is ended later.
            let _ = device.forget(xs);
        }
        let events = self.console.event_channels();
        let mut until = Until::from(deadline);
        let deadline = until.deadline();
        let begun = Frontend::open_present(xs, "console", self.index, &mut *deadline)
            .map_err(Error::from)
            .and_then(|device| {
                blocking::begin(&mut Blocking::until(xs, &mut *deadline), device, events, self.grants)
            });
        (was, begun.ok())
    }

    fn finish(&mut self, (was, begun): Self::Begun, xs: &mut Xenstore<'x, P>, deadline: Duration) -> usize {
        let Some((console, device)) = begun else { return was.into() };
        let Ok(device) = blocking::finish(&mut Blocking::until(xs, deadline), device) else {
            return was.into();
        };
        // If it does not work the next call says so.
        let _ = self.succeed((console, device));
        0
    }

    fn go_on(&mut self) {
        if self.console.channel().notify().is_ok() {
            self.console.looked(0);
        }
    }
}

pub(crate) fn share<'x, P: Platform>(
    device: &Frontend<BackendReady>,
    events: &'x EventChannels<P>,
    grants: &'x GrantTable<P>,
) -> Result<(Console<'x, P>, u32), Error> {
    let backend = device.backend_id();
    let page = grants.share(backend, Access::ReadWrite)?;
    let gref = page.gref().0;
    Ok((Console::on(ConsolePage::Granted(page), events.alloc_unbound(backend)?)?, gref))
}

impl<P: Platform> fmt::Debug for SecondaryConsole<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecondaryConsole")
            .field("state", &self.state())
            .field("console", &self.console)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}
