//! The task that looks after a disk: connects it, follows its backend, and connects it again.

use core::convert::Infallible;
use core::fmt;
use core::future::{Future, poll_fn, ready};
use core::pin::pin;
use core::task::Poll;

use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::{Platform, Wait};
use xen_xenstore::Path;
use xen_xenstore::shared::{Client, Conversation};
use xen_xenstore::xenbus::{BackendChange, Connected, Frontend, XenbusState};

use super::{Disk, Line};
use crate::connect::Link;
use crate::lifecycle::Site;
use crate::tasks_way::steps;
use crate::tasks_way::way::{Ask, frontend};
use crate::{BlkFront, Config, Error, State};

/// How often a disk is tried in a row that does not come.
const TRIES: usize = 3;

/// Looks after a disk: the only one who connects what is in a [`Disk`].
///
/// [`run`](Self::run) connects the disk of this number when it has a backend, answers a backend that closes, notices one that vanishes,
/// connects again when the backend is back or the toolstack has put another disk in its place, and reads its size anew. It also
/// [drives](Disk::drive) the disk, so that one task does both.
pub struct Control<'d, 'x, P: Platform> {
    disk: &'d Disk<'x, P>,
    events: &'x EventChannels<P>,
    grants: &'x GrantTable<P>,
    index: u32,
    config: Config,
}

impl<'x, P: Platform> Disk<'x, P> {
    /// Who is to look after the disk of this number, as in `device/vbd/51712`. None: somebody does already.
    pub fn control(
        &self,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
        config: Config,
    ) -> Option<Control<'_, 'x, P>> {
        (!self.controlled.replace(true)).then_some(Control { disk: self, events, grants, index, config })
    }

    /// Whether tasks wait for the disk to be connected again.
    fn hold(&self, held: bool) {
        self.place.borrow_mut().held = held;
        if !held {
            self.settle();
        }
    }

    /// Nobody waits for the disk any longer that closes.
    fn give_up(&self) {
        {
            let place = &mut *self.place.borrow_mut();
            place.held = false;
            place.end_all(&self.seats, Error::Closed);
        }
        self.call_all(Line::Answers);
        self.call_all(Line::Told);
        self.call_all(Line::Room);
        self.settle();
    }

    /// Which connection the disk has: another number is another one, made without us.
    fn epoch(&self) -> u32 {
        self.place.borrow().epoch
    }
}

impl<P: Platform> Drop for Control<'_, '_, P> {
    fn drop(&mut self) {
        self.disk.controlled.set(false);
    }
}

/// While somebody looks after a disk, tasks may wait for it.
struct Held<'d, 'x, P: Platform>(&'d Disk<'x, P>);

impl<P: Platform> Drop for Held<'_, '_, P> {
    fn drop(&mut self) {
        self.0.hold(false);
    }
}

impl<'x, P: Platform + Wait> Control<'_, 'x, P> {
    /// Looks after the disk and drives it, without patience: when the backend closes or vanishes, what is under way fails at once.
    /// Returns only what ends the connection to xenstore. May be dropped, and begun anew.
    pub async fn run(&mut self, client: Client<'_, 'x, P>) -> Error {
        self.run_with(client, || ready(())).await
    }

    /// The same with patience: `patience` makes a future that is ready some time later, such as a timer. For so long calls that are under
    /// way wait for a backend that has gone, and new ones wait with them; when it is back before that, they are issued again, as
    /// [`BlkFront::reconnect`] does. So long also has a backend that closes to answer what is under way.
    pub async fn run_with<F: Future<Output = ()>>(
        &mut self,
        client: Client<'_, 'x, P>,
        mut patience: impl FnMut() -> F,
    ) -> Error {
        let _held = Held(self.disk);
        let (mut drive, mut follow) = (pin!(self.disk.drive()), pin!(self.follow(client, &mut patience)));
        poll_fn(|cx| {
            // What the one does the other may have to follow.
            if let Poll::Ready(Err(error)) = follow.as_mut().poll(cx) {
                return Poll::Ready(error);
            }
            match drive.as_mut().poll(cx) {
                Poll::Ready(never) => match never {},
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Does what is to be done next, again and again.
    async fn follow<F: Future<Output = ()>>(
        &self,
        client: Client<'_, 'x, P>,
        patience: &mut impl FnMut() -> F,
    ) -> Result<Infallible, Error> {
        let disk = self.disk;
        loop {
            if let Some(device) = disk.place.borrow_mut().stale.take() {
                let _ = frontend::forget(device, &mut client.conversation());
            }
            // What is being said to a backend is of no meaning when somebody else has connected the disk: in a new domain.
            let epoch = disk.epoch();
            let other = disk.handle().until(|disk| disk.epoch() != epoch);
            if let First::Work(done) = either(self.go_on(client, patience), other).await {
                done?;
            }
        }
    }

    /// Does what is to be done next.
    async fn go_on<F: Future<Output = ()>>(
        &self,
        client: Client<'_, 'x, P>,
        patience: &mut impl FnMut() -> F,
    ) -> Result<(), Error> {
        let disk = self.disk;
        match disk.look(BlkFront::state) {
            None => self.connect(client).await,
            Some(State::Connected) => self.attend(client).await,
            Some(State::Closing) => self.close(client, patience()).await,
            Some(State::Closed) => with_grace(self.reconnect(client), patience(), || disk.hold(false)).await,
            // What there is of it goes, and it is not tried again as long as it is there.
            Some(State::Broken(_)) if disk.look(|front| front.link.is_some()) == Some(true) => {
                self.close(client, patience()).await
            }
            Some(State::Broken(_)) => {
                self.await_other(client).await?;
                self.connect(client).await
            }
        }
    }

    /// Connects a disk to an empty place, or in place of a broken one.
    async fn connect(&self, client: Client<'_, 'x, P>) -> Result<(), Error> {
        let (disk, epoch) = (self.disk, self.disk.epoch());
        for _ in 0..TRIES {
            self.await_backend(client).await?;
            if disk.epoch() != epoch {
                return Ok(());
            }
            let mut talk = client.conversation();
            match self.connect_by(&mut talk).await {
                // Somebody else was faster.
                Ok(front) if disk.epoch() != epoch => return self.let_go(front, talk).await,
                Ok(front) => {
                    talk.leave();
                    drop(disk.put(front));
                    return Ok(());
                }
                Err(error) => ended(error)?,
            }
        }
        self.await_other(client).await
    }

    async fn connect_by(&self, talk: &mut Conversation<'_, 'x, P>) -> Result<BlkFront<'x, P>, Error> {
        let connecting = steps::begin(talk, self.events, self.grants, self.index, self.config).await?;
        steps::finish_disk(connecting, talk).await
    }

    /// Ends a connection that nobody needs.
    async fn let_go(
        &self,
        mut front: BlkFront<'x, P>,
        mut talk: Conversation<'_, 'x, P>,
    ) -> Result<(), Error> {
        if let (_, Some(Link { device: Some(device), .. })) = front.unlink() {
            let _ = frontend::abandon(device, &mut talk).await;
        }
        Ok(())
    }

    /// Connects the disk in the place anew.
    async fn reconnect(&self, client: Client<'_, 'x, P>) -> Result<(), Error> {
        let disk = self.disk;
        let changed = disk.handle().changed();
        if disk.look(BlkFront::has_taken) == Some(true) {
            // They are to be put back before.
            changed.await;
            return Ok(());
        }
        let mut site = Spot { disk, epoch: disk.epoch() };
        for _ in 0..TRIES {
            self.await_backend(client).await?;
            if site.epoch != disk.epoch() {
                return Ok(());
            }
            let mut talk = client.conversation();
            let connected = steps::reconnect(&mut site, &mut talk).await;
            if site.epoch != disk.epoch() {
                return Ok(());
            }
            match connected {
                Ok(()) => {
                    talk.leave();
                    disk.hold(false);
                    return Ok(());
                }
                Err(error) => ended(error)?,
            }
        }
        self.await_other(client).await
    }

    /// Waits for a change of a disk at work, and says what it is.
    async fn attend(&self, client: Client<'_, 'x, P>) -> Result<(), Error> {
        let disk = self.disk;
        let mut talk = client.conversation();
        loop {
            let changed = disk.handle().changed();
            let Some(lent) = Lent::take(disk) else {
                // Somebody else looks after it.
                changed.await;
                return Ok(());
            };
            let change = frontend::change_by_asking(lent.device(), &mut talk).await;
            let mut sectors = None;
            if let Ok(BackendChange::Told(_)) = change {
                sectors = Some(frontend::read_backend(lent.device(), &mut talk, "sectors").await);
            }
            let watch = *lent.device().watch();
            if !lent.give_back(&mut talk) {
                return Ok(());
            }
            match change {
                Ok(change) => self.heed(change, sectors),
                Err(error) => ended(error.into())?,
            }
            if disk.look(BlkFront::state) != Some(State::Connected) {
                return Ok(());
            }
            if let First::Work(Err(error)) = either(talk.wait_fired(&watch), changed).await {
                passes(error)?;
                // Nothing is told of this backend any more.
                self.heed(BackendChange::Closed, None);
            }
            if disk.look(BlkFront::state) != Some(State::Connected) {
                return Ok(());
            }
        }
    }

    /// The disk is as its backend says.
    fn heed(&self, change: BackendChange, sectors: Option<Result<Option<u64>, xen_xenstore::Error>>) {
        let mut place = self.disk.place.borrow_mut();
        if let Some(front) = &mut place.front {
            // A size that cannot be leaves the one before.
            let _ = front.heed(change, sectors);
            // Until somebody's patience ends.
            place.held = place.front.as_ref().is_some_and(|front| front.state() == State::Closed);
        }
        drop(place);
        self.disk.settle();
    }

    /// Follows a backend that closes, or ends what there is with one that is not believed any more. What it still answers is taken.
    async fn close<F: Future<Output = ()>>(
        &self,
        client: Client<'_, 'x, P>,
        patience: F,
    ) -> Result<(), Error> {
        let (disk, epoch) = (self.disk, self.disk.epoch());
        let device = Lent::take(disk).and_then(Lent::keep);
        let mut talk = client.conversation();
        let closed = match device {
            Some(device) => with_grace(frontend::close(device, &mut talk), patience, || disk.give_up()).await,
            None => Ok(()),
        };
        if disk.epoch() != epoch {
            return Ok(());
        }
        let _ = disk.as_it_is(|front| {
            let broken = front.state();
            // The last that it has answered.
            let _ = front.poll();
            drop(front.unlink());
            if let State::Broken(_) = broken {
                front.change(broken);
            }
        });
        disk.settle();
        closed.or_else(|error| ended(error.into()))
    }

    /// Waits until a backend waits for the disk, or the place has another one.
    async fn await_backend(&self, client: Client<'_, 'x, P>) -> Result<(), Error> {
        let changed = self.disk.handle().changed();
        either(self.find_backend(client), changed).await.transpose_end()
    }

    async fn find_backend(&self, client: Client<'_, 'x, P>) -> Result<(), xen_xenstore::Error> {
        let own = Path::format(format_args!("device/vbd/{}", self.index))?;
        let node = own.join("backend")?;
        let mut device = client.watch(&node).await?;
        loop {
            // What happens from here on is told.
            device.has_changed()?;
            match client.read(&node, path_of).await {
                Ok(path) => {
                    let mut backend = client.watch(&path).await?;
                    loop {
                        backend.has_changed()?;
                        if is_waiting(client, &own, &path).await? {
                            return Ok(());
                        }
                        if let First::Other =
                            either(backend.changed(), async { device.changed().await.unwrap_or(()) }).await
                        {
                            break;
                        }
                    }
                }
                Err(error) => {
                    passes(error)?;
                    device.changed().await?;
                }
            }
        }
    }

    /// Waits until the toolstack has made the device anew, the backend's domain has gone, or the place has another disk.
    async fn await_other(&self, client: Client<'_, 'x, P>) -> Result<(), Error> {
        let changed = self.disk.handle().changed();
        either(self.find_other(client), changed).await.transpose_end()
    }

    async fn find_other(&self, client: Client<'_, 'x, P>) -> Result<(), xen_xenstore::Error> {
        let node = Path::format(format_args!("device/vbd/{}/backend", self.index))?;
        let mut device = client.watch(&node).await?;
        // The first event is that it is set.
        device.changed().await?;
        let path = match client.read(&node, path_of).await {
            Ok(path) => path,
            Err(error) => return passes(error),
        };
        let mut backend = client.watch(&path).await?;
        loop {
            backend.has_changed()?;
            match client.read_parsed(&path.join("state")?).await {
                Ok(XenbusState::UNKNOWN) => return Ok(()),
                Ok(_) => {}
                Err(error) => return passes(error),
            }
            if let First::Other =
                either(backend.changed(), async { device.changed().await.unwrap_or(()) }).await
            {
                return Ok(());
            }
        }
    }
}

/// The path that a node says.
fn path_of(value: &[u8]) -> Result<Path, xen_xenstore::Error> {
    let text = core::str::from_utf8(value).map_err(|_| xen_xenstore::Error::NotText)?;
    Path::new(text)
}

/// Whether a backend waits for the device of this directory, or would begin anew with it.
async fn is_waiting<P: Platform + Wait>(
    client: Client<'_, '_, P>,
    device: &Path,
    path: &Path,
) -> Result<bool, xen_xenstore::Error> {
    let state = match client.read_parsed(&path.join("state")?).await {
        Ok(state) => state,
        Err(error) => return passes(error).map(|()| false),
    };
    if ![XenbusState::CLOSING, XenbusState::CLOSED].contains(&state) {
        // One that is at work is so for an earlier kernel, or for somebody who was dropped.
        return Ok(state != XenbusState::UNKNOWN);
    }
    let online = match client.read_parsed::<u32>(&path.join("online")?).await {
        Ok(online) => online == 1,
        Err(error) => return passes(error).map(|()| false),
    };
    if state == XenbusState::CLOSING && !online {
        // It is to go, and waits for whoever had it before.
        let ours = device.join("state")?;
        let closed = client.transaction(async |transaction| {
            match transaction.read_optional::<XenbusState>(&ours).await? {
                None | Some(XenbusState::CLOSED) => Ok(()),
                Some(_) => transaction.write_display(&ours, XenbusState::CLOSED).await,
            }
        });
        closed.await.or_else(passes)?;
    }
    Ok(online)
}

/// An error that another look need not have, unless the connection to xenstore is of no use any more.
fn passes(error: xen_xenstore::Error) -> Result<(), xen_xenstore::Error> {
    match error {
        xen_xenstore::Error::Broken(_) | xen_xenstore::Error::Disconnected(_) => Err(error),
        _ => Ok(()),
    }
}

/// The place of a disk that is connected anew.
struct Spot<'d, 'x, P: Platform> {
    disk: &'d Disk<'x, P>,
    epoch: u32,
}

impl<'x, P: Platform> Site<'x, P> for Spot<'_, 'x, P> {
    fn with<R>(&mut self, f: impl FnOnce(&mut BlkFront<'x, P>) -> R) -> Result<R, Error> {
        let mut place = self.disk.place.borrow_mut();
        let same = place.epoch == self.epoch;
        place.front.as_mut().filter(|_| same).map(f).ok_or(Error::Closed)
    }
}

/// A device that was taken out of a disk for a question, and is given back.
struct Lent<'d, 'x, P: Platform> {
    disk: &'d Disk<'x, P>,
    device: Option<Frontend<Connected>>,
    epoch: u32,
}

impl<'d, 'x, P: Platform> Lent<'d, 'x, P> {
    fn take(disk: &'d Disk<'x, P>) -> Option<Self> {
        let mut place = disk.place.borrow_mut();
        let device = place.front.as_mut()?.link.as_mut()?.device.take()?;
        Some(Self { disk, device: Some(device), epoch: place.epoch })
    }

    fn device(&self) -> &Frontend<Connected> {
        match &self.device {
            Some(device) => device,
            None => unreachable!("it is given back at the end"),
        }
    }

    /// Not to be given back.
    fn keep(mut self) -> Option<Frontend<Connected>> {
        self.device.take()
    }

    /// Gives it back; false: it is of a connection that is not there any more, and ends.
    fn give_back(mut self, ask: &mut impl Ask) -> bool {
        let same = self.disk.epoch() == self.epoch;
        if let Some(device) = self.device.take_if(|_| !same) {
            let _ = frontend::forget(device, ask);
        }
        same
    }
}

impl<P: Platform> Drop for Lent<'_, '_, P> {
    fn drop(&mut self) {
        let Some(device) = self.device.take() else { return };
        let mut place = self.disk.place.borrow_mut();
        let same = place.epoch == self.epoch;
        match place.front.as_mut().and_then(|front| front.link.as_mut()) {
            Some(link) if same => link.device = Some(device),
            _ => place.stale = Some(device),
        }
    }
}

/// An error of a handshake, which is tried again, unless the connection to xenstore is of no use any more.
fn ended(error: Error) -> Result<(), Error> {
    match error {
        Error::Xenstore(error) => Ok(passes(error)?),
        _ => Ok(()),
    }
}

/// Waits for `work`, and calls `over` when `grace` is ready before.
async fn with_grace<W: Future>(work: W, grace: impl Future<Output = ()>, over: impl FnOnce()) -> W::Output {
    let (mut work, mut grace) = (pin!(work), pin!(grace));
    let mut over = Some(over);
    poll_fn(|cx| {
        let done = work.as_mut().poll(cx);
        if done.is_pending() && over.is_some() && grace.as_mut().poll(cx).is_ready() {
            if let Some(over) = over.take() {
                over();
            }
        }
        done
    })
    .await
}

/// What was ready first.
enum First<T> {
    Work(T),
    Other,
}

impl<T> First<Result<T, xen_xenstore::Error>> {
    /// An end of the connection to xenstore.
    fn transpose_end(self) -> Result<(), Error> {
        match self {
            Self::Work(Err(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Waits for one of two.
async fn either<W: Future>(work: W, other: impl Future<Output = ()>) -> First<W::Output> {
    let (mut work, mut other) = (pin!(work), pin!(other));
    poll_fn(|cx| {
        if let Poll::Ready(output) = work.as_mut().poll(cx) {
            return Poll::Ready(First::Work(output));
        }
        other.as_mut().poll(cx).map(|()| First::Other)
    })
    .await
}

impl<P: Platform> fmt::Debug for Control<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("index", &self.index).field("disk", self.disk).finish_non_exhaustive()
    }
}
