//! Who controls the device in a place.

use core::cell::Cell;
use core::convert::Infallible;
use core::fmt;
use core::future::poll_fn;
use core::pin::pin;
use core::task::{Context, Poll};

use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::{Platform, Wait};
use xen_xenstore::shared::{Client, Conversation, Watching};
use xen_xenstore::way::tasks::{Ask, frontend};
use xen_xenstore::xenbus::XenbusState;
use xen_xenstore::{Error as StoreError, Path, Watch};

use super::Card;
use crate::connect::Shared;
use crate::lifecycle::is_waiting;
use crate::link::Tie;
use crate::wake::Sides;
use crate::way::tasks::{connect, follow};
use crate::{Config, Error, Followup, NetFront, State};

/// Controls the device in a [place](Card): connects it when its backend is there, follows the backend, answers it when it ends the
/// device, and begins anew when there is another. One task does that by [`run`](Self::run), while others use the device.
///
/// Dropped, it leaves the device in the place as it is: to the next one, or to the calls of [`NetFront`] that block.
pub struct Controller<'c, 'x, P: Platform + Wait, const QUEUES: usize = 1> {
    card: &'c Card<'x, P, QUEUES>,
    events: &'x EventChannels<P>,
    grants: &'x GrantTable<P>,
    index: u32,
    config: Config,
    /// Of the device in the place, while it has a backend.
    tie: Option<Tie>,
    /// What is shared with the backend of a device that is not in the place yet.
    aside: Option<Shared<'x, P, QUEUES>>,
    /// The first of the wanted multicast addresses that this backend was not asked for; none when it was asked for all.
    group: Cell<Option<usize>>,
}

impl<'x, P: Platform + Wait, const QUEUES: usize> Card<'x, P, QUEUES> {
    /// Who controls network device `index` in this place. A device that is in it already is gone on with. None while another one
    /// controls it.
    pub fn control<'c>(
        &'c self,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
        config: Config,
    ) -> Option<Controller<'c, 'x, P, QUEUES>> {
        let mut place = self.place.try_borrow_mut().ok()?;
        if core::mem::replace(&mut place.controlled, true) {
            return None;
        }
        let tie = place.front.as_mut().and_then(|front| front.tie.take());
        let config = Config { receive: config.receive.consistent(), ..config };
        let group = Cell::new(None);
        Some(Controller { card: self, events, grants, index, config, tie, aside: None, group })
    }

    /// Lets the backend filter multicast frames from now on, or no more, as [`NetFront::filter_multicast`] does: the one who
    /// [controls](Self::control) the device sees to it, also with one that takes its place later.
    pub fn filter_multicast(&self, filter: bool) {
        if let Ok(mut place) = self.place.try_borrow_mut() {
            place.filter = Some(filter);
            let mut control = core::mem::take(&mut place.waiting.control);
            drop(place);
            control.wake_all();
        }
    }

    fn take_filter(&self) -> Option<bool> {
        self.place.try_borrow_mut().ok()?.filter.take()
    }

    /// Ready when there is something to do for the one who controls the device.
    fn poll_control(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.wait(cx, |place, cx| {
            if place.front.is_none() || place.filter.is_some() || place.now().broken {
                return Poll::Ready(());
            }
            place.waiting.control.leave(cx.waker());
            Poll::Pending
        })
    }

    /// Puts a device that was connected in the place of the one that is here, which it succeeds.
    fn install(&self, again: NetFront<'x, P, QUEUES>) {
        let displaced = match self.place.try_borrow_mut() {
            Ok(mut place) => {
                place.stamp = place.stamp.wrapping_add(1);
                place.closed = false;
                match &mut place.front {
                    Some(front) => {
                        front.succeed(again);
                        None
                    }
                    front => front.replace(again),
                }
            }
            // A task is polled by nobody within `with`.
            Err(_) => Some(again),
        };
        drop(displaced);
        self.tell_all();
    }
}

/// The watches that tell of a backend for the device.
struct Watches<'s, 'x, P: Platform + Wait> {
    /// Whose backend it is.
    backend: Watching<'s, 'x, P>,
    /// Its state, once there was one.
    state: Option<(Path, Watching<'s, 'x, P>)>,
}

impl<P: Platform + Wait> Watches<'_, '_, P> {
    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StoreError>> {
        let backend = self.backend.poll_changed(cx);
        match &mut self.state {
            Some((_, state)) if backend.is_pending() => state.poll_changed(cx),
            _ => backend,
        }
    }

    /// Forgets what changed until now.
    fn take(&mut self) -> Result<(), StoreError> {
        self.backend.has_changed()?;
        self.state.as_mut().map_or(Ok(false), |(_, state)| state.has_changed()).map(drop)
    }

    /// Ready when the device has got another backend, or none. It is looked at in any case afterwards.
    fn poll_replaced(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.backend.poll_changed(cx).map_err(Error::from)
    }
}

impl<'x, P: Platform + Wait, const QUEUES: usize> Controller<'_, 'x, P, QUEUES> {
    /// Controls the device for as long as the future is polled. It can be dropped at any time, and another call goes on, so a backend that
    /// takes too long is given up by whoever has a clock.
    ///
    /// A backend that is gone, refuses, or whose device makes no sense is waited for. A device that a backend broke is closed, and
    /// begun anew with the next.
    ///
    /// # Errors
    /// [`Error::Closed`]: the place was [closed](Card::close). What waiting does not help against: the connection to xenstore is of no use any more, or has no room for watches;
    /// [`Error::Grant`] and [`Error::Event`] when resources do not suffice for a queue. It may be called again after that.
    pub async fn run(&mut self, client: Client<'_, 'x, P>) -> Result<Infallible, Error> {
        let path = Path::format(format_args!("device/vif/{}/backend", self.index))?;
        let mut watches = Watches { backend: client.watch(&path).await?, state: None };
        // A device that an earlier kernel has closed waits for this one to begin.
        let mut first = true;
        while !self.card.is_closed() {
            self.adopt();
            if self.tie.is_none() {
                self.await_backend(client, &mut watches, first).await?;
                match self.connect(client, &mut watches).await {
                    Ok(()) => {}
                    // The daemon had no time for it, and the backend may have followed us to the end.
                    Err(Error::Xenstore(StoreError::TimedOut(_) | StoreError::Contended)) => {
                        first = true;
                        continue;
                    }
                    Err(error) if passes(&error) => {
                        // The same attempt comes to the same end, until something is different.
                        poll_fn(|cx| watches.poll_changed(cx)).await?;
                    }
                    Err(error) => return Err(error),
                }
            }
            first = false;
            self.follow(client).await?;
            self.part(client, &mut watches).await?;
        }
        Err(Error::Closed)
    }

    /// Takes over what somebody else has put into the place.
    fn adopt(&mut self) {
        let tie = &mut self.tie;
        self.card.with(|front| {
            if front.state == State::Connected && front.tie.is_some() {
                *tie = front.tie.take();
            }
        });
    }

    /// Ends the device in good order, and [closes](Card::close) its place: the backend lets go, and the pages come back.
    ///
    /// # Errors
    /// As [`NetFront::close`]; there is no time that could be up.
    pub async fn close(mut self, client: Client<'_, 'x, P>) -> Result<(), Error> {
        let front = self.card.close();
        let tie = self.tie.take();
        let Some(mut front) = front else { return Ok(()) };
        let mut ask = client.conversation();
        follow::end(&mut ask, &mut front, tie).await
    }

    /// Waits until a backend waits for the device.
    async fn await_backend<'s>(
        &self,
        client: Client<'s, 'x, P>,
        watches: &mut Watches<'s, 'x, P>,
        first: bool,
    ) -> Result<(), Error> {
        loop {
            // What happened until now is seen by what follows.
            watches.take()?;
            let mut ask = client.conversation();
            let backend = match follow::backend(&mut ask, self.index).await {
                Ok(path) => Some(path),
                Err(error) if passes(&error.into()) => None,
                Err(error) => return Err(error.into()),
            };
            if let Some(backend) = backend {
                let path = backend.join("state")?;
                if watches.state.as_ref().is_none_or(|(known, _)| *known != path) {
                    watches.state = None;
                    match client.watch(&path).await {
                        Ok(watch) => watches.state = Some((path, watch)),
                        Err(error) if passes(&error.into()) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                match ask.read_parsed::<XenbusState>(&path).await {
                    Ok(state) if is_waiting(state) => return Ok(()),
                    Ok(XenbusState::CLOSED) if first => {
                        // Or it is about to go.
                        if ask.read_parsed(&backend.join("online")?).await == Ok(1) {
                            return Ok(());
                        }
                    }
                    Ok(_) => {}
                    Err(error) if passes(&error.into()) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            poll_fn(|cx| watches.poll_changed(cx)).await?;
        }
    }

    /// Connects a device aside, and puts it into the place, unless the device gets another backend meanwhile.
    async fn connect<'s>(
        &mut self,
        client: Client<'s, 'x, P>,
        watches: &mut Watches<'s, 'x, P>,
    ) -> Result<(), Error> {
        if let Some(filter) = self.card.take_filter() {
            self.config.multicast_filter = filter;
        }
        let mut ask = client.conversation();
        let connected = {
            let mut connecting = pin!(self.connect_aside(&mut ask));
            poll_fn(|cx| match connecting.as_mut().poll(cx) {
                Poll::Pending => watches.poll_replaced(cx).map(|replaced| replaced.map(|()| None)),
                ready => ready.map(|connected| connected.map(Some)),
            })
            .await
        };
        let (Some(tie), Some(shared)) = (connected?, self.aside.take()) else { return Ok(()) };
        let mut front = shared.into_front(self.events, self.grants, self.index, self.config);
        (front.backend, front.state) = (tie.device.backend_id(), State::Connected);
        ask.leave();
        self.tie = Some(tie);
        self.group.set(Some(0));
        // What does not work shows when the device is used.
        let _ = front.publish();
        self.card.install(front);
        Ok(())
    }

    /// All of that which waits. What is shared stays here if the future is dropped: the backend may have it.
    async fn connect_aside(&mut self, ask: &mut Conversation<'_, 'x, P>) -> Result<Tie, Error> {
        let config = self.config;
        let device = connect::open(ask, self.index, config.await_device).await?;
        // A backend that is ready has let go of what was shared before.
        self.aside = None;
        self.card.with(NetFront::release);
        let shared = match connect::agree(ask, &device, &config, QUEUES).await {
            Ok(terms) => Shared::new(self.events, self.grants, device.backend_id(), &config, terms),
            Err(error) => Err(error),
        };
        let shared = match shared {
            Ok(shared) => self.aside.insert(shared),
            Err(error) => {
                // The first error says more than one of the way out.
                let _ = frontend::abandon(device, ask).await;
                return Err(error);
            }
        };
        let Shared { terms, queues, control } = shared;
        let tied = match connect::offer(ask, device, &config, terms, queues, control).await {
            Ok(device) => connect::tie(ask, device, config.follow_link).await,
            Err(error) => Err(error),
        };
        if tied.is_err() {
            // The backend was told that the device has ended.
            self.aside = None;
        }
        tied
    }

    /// Follows the backend until the device is at its end.
    async fn follow(&mut self, client: Client<'_, 'x, P>) -> Result<(), Error> {
        let Some(tie) = &self.tie else { return Ok(()) };
        let mut ask = client.conversation();
        loop {
            if let Some(filter) = self.card.take_filter() {
                self.config.multicast_filter = filter;
                if self.card.with(|front| front.set_filter(filter)) == Some(true) {
                    // One that cannot be told now is told when it begins anew.
                    let _ = follow::filter(&mut ask, &tie.device, filter).await;
                }
            }
            // Without a device somebody has taken it, who may have put another there.
            let Some(state) = self.card.with(|front| front.state) else { return Ok(()) };
            match follow::follow_by_asking(&mut ask, tie, state).await {
                Ok(news) => {
                    self.card.with(|front| front.heed(news));
                }
                Err(error) if passes(&error.into()) => {}
                Err(error) => return Err(error.into()),
            }
            match self.card.with(|front| front.state) {
                Some(State::Connected | State::Closing) => {}
                _ => return Ok(()),
            }
            let mut state = pin!(fired(client.conversation(), Some(*tie.device.watch())));
            let [first, second] = tie.watches;
            let mut carrier = pin!(fired(client.conversation(), first));
            let mut disconnect = pin!(fired(client.conversation(), second));
            let woken = poll_fn(|cx| {
                self.poll_groups(cx);
                if self.card.poll_control(cx).is_ready() {
                    return Poll::Ready(Ok(()));
                }
                for watch in [
                    state.as_mut() as core::pin::Pin<&mut dyn Future<Output = _>>,
                    carrier.as_mut(),
                    disconnect.as_mut(),
                ] {
                    if let Poll::Ready(fired) = watch.poll(cx) {
                        return Poll::Ready(fired);
                    }
                }
                Poll::Pending
            });
            woken.await?;
        }
    }

    /// Asks the backend for the multicast addresses that it was not asked for, as far as there is room.
    fn poll_groups(&self, cx: &mut Context<'_>) {
        let Some(mut from) = self.group.get() else { return };
        let asked = self.card.look(cx, Sides::Transmit, |front, _| match front.ask_again(from) {
            Ok(()) => Ok(Some(())),
            Err((next, Error::Full)) => {
                from = next;
                Ok(None)
            }
            // It is not at work any more, and there will be another one.
            Err(_) => {
                front.followup |= Followup::MULTICAST;
                Ok(Some(()))
            }
        });
        self.group.set(asked.is_pending().then_some(from));
    }

    /// Ends a device that is closed, or broken, and gives its pages up.
    async fn part<'s>(
        &mut self,
        client: Client<'s, 'x, P>,
        watches: &mut Watches<'s, 'x, P>,
    ) -> Result<(), Error> {
        if let Some(tie) = self.tie.take() {
            let closed = self.card.with(|front| front.state) == Some(State::Closed);
            let mut ask = client.conversation();
            let mut parting = pin!(follow::part(&mut ask, tie, closed));
            let parted = poll_fn(|cx| match parting.as_mut().poll(cx) {
                Poll::Pending => watches.poll_replaced(cx),
                ready => ready.map(|parted| parted.map_err(Error::from)),
            });
            match parted.await {
                Err(error) if !passes(&error) => return Err(error),
                // Ended here in any case.
                _ => {}
            }
        }
        self.card.with(NetFront::release);
        Ok(())
    }
}

/// Waits until a watch fires, if there is one.
async fn fired<P: Platform + Wait>(
    mut ask: Conversation<'_, '_, P>,
    watch: Option<Watch>,
) -> Result<(), StoreError> {
    match watch {
        Some(watch) => ask.wait_fired(&watch).await.map(drop),
        None => core::future::pending().await,
    }
}

/// Whether it helps to wait for another backend, or for what the toolstack does.
fn passes(error: &Error) -> bool {
    match error {
        Error::Xenstore(error) => matches!(
            error,
            StoreError::Refused(..)
                | StoreError::TimedOut(_)
                | StoreError::BadPath
                | StoreError::NotText
                | StoreError::BadValue
                | StoreError::Contended
                | StoreError::BackendTimedOut(_)
                | StoreError::BackendGone(_)
        ),
        Error::NoRxCopy | Error::NoMac | Error::Closed | Error::Broken(_) => true,
        _ => false,
    }
}

impl<'c, 'x, P: Platform + Wait, const QUEUES: usize> Controller<'c, 'x, P, QUEUES> {
    pub(super) fn card(&self) -> &'c Card<'x, P, QUEUES> {
        self.card
    }

    /// Gives the device back what ties it to its backend, for calls that need both.
    pub(super) fn reunite(&mut self) {
        let tie = self.tie.take();
        if let Ok(mut place) = self.card.place.try_borrow_mut() {
            if let Some(front) = place.front.as_mut().filter(|front| front.tie.is_none()) {
                front.tie = tie;
            }
        }
    }
}

impl<P: Platform + Wait, const QUEUES: usize> Drop for Controller<'_, '_, P, QUEUES> {
    fn drop(&mut self) {
        self.reunite();
        if let Ok(mut place) = self.card.place.try_borrow_mut() {
            place.controlled = false;
        }
    }
}

impl<P: Platform + Wait, const QUEUES: usize> fmt::Debug for Controller<'_, '_, P, QUEUES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("card", self.card)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}
