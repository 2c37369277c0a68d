//! Blkfront as the application's disk, which can go and come back, as itself or as another.

use core::cell::{Cell, OnceCell, RefCell};
use core::time::Duration;

use embedded_sdmmc::{Block, BlockCount, BlockDevice, BlockIdx};
use webserver::report::Report;
use xen_blkfront::sdmmc::SdmmcDisk;
use xen_blkfront::{BlkFront, Config, Error, State};
use xen_hypercall::Wait;
use xen_xenstore::xenbus::XenbusState;
use xen_xenstore::{Path, Watch, Xenstore};

use super::{CLOSING, Grants, PATIENCE};
use crate::machine::{Events, Store};
use crate::platform::Kernel;

/// A disk that says nothing for so long is taken for gone: everybody waits for it meanwhile.
const ANSWER: Duration = Duration::from_secs(10);

/// Where the domain's first disk is, or will be.
#[derive(Debug)]
pub(crate) struct Slot {
    store: Store,
    events: Events,
    grants: Grants,
    /// Fires when the toolstack adds a disk or takes one away. There is none before a disk is missed for the
    /// first time: it would tell the kernel of the nodes that it writes itself when it starts.
    devices: OnceCell<Option<Watch>>,
    /// Fires when the first disk's backend becomes ready.
    backend: RefCell<Option<(Path, Watch)>>,
    /// A disk that cannot be used, and is not tried again as long as it is there.
    avoided: Cell<Option<u32>>,
}

impl Slot {
    pub(super) fn new(store: Store, events: Events, grants: Grants) -> Self {
        let (devices, backend) = (OnceCell::new(), RefCell::default());
        Self { store, events, grants, devices, backend, avoided: Cell::default() }
    }

    /// Connects the disk that is there when the domain starts; without one, or when it does not come, says so.
    pub(super) fn first(&'static self, deadline: Duration) -> Option<Disk> {
        let Some(index) = BlkFront::first_index(&mut self.store.borrow_mut()).ok().flatten() else {
            log::warn!("disk: this domain has no disk (vbd)");
            return None;
        };
        self.connect(index, deadline)
    }

    /// Connects a disk that has come. Does not wait for one.
    pub(crate) fn come(&'static self) -> Option<Disk> {
        let index = self.ready(&mut self.store.borrow_mut())?;
        let disk = self.connect(index, self.events.platform().now() + PATIENCE);
        if disk.is_none() {
            self.avoided.set(Some(index));
        }
        disk
    }

    /// The number of the first disk, if its backend is ready to connect, and whether it is may have changed.
    fn ready(&self, xs: &mut Xenstore<'static, &'static Kernel>) -> Option<u32> {
        let mut backend = self.backend.borrow_mut();
        let devices = self.devices.get_or_init(|| {
            xs.watch(DISKS).inspect_err(|error| log::warn!("disk: {error}; none will be seen coming")).ok()
        });
        let watches = [*devices, backend.as_ref().map(|(_, watch)| *watch)];
        // All are asked, for the next to sleep must find none that has fired.
        let fired = watches.iter().flatten().filter(|watch| xs.fired(watch) == Ok(true)).count();
        if fired == 0 {
            return None;
        }
        let index = BlkFront::first_index(xs).ok().flatten();
        if self.avoided.get() != index {
            self.avoided.set(None);
        }
        let index = index.filter(|_| self.avoided.get().is_none())?;
        let node = Path::format(format_args!("{DISKS}/{index}/backend")).ok()?;
        let path = xs.read_str(&node).ok().and_then(|path| Path::new(path).ok())?;
        let node = path.join("state").ok()?;
        if backend.as_ref().is_none_or(|(watched, _)| *watched != node) {
            if let Some((_, watch)) = backend.take() {
                let _ = xs.unwatch(watch);
            }
            *backend = xs.watch(&node).ok().map(|watch| (node, watch));
        }
        let ready = match xs.read_parsed(&node) {
            Ok(XenbusState::INIT_WAIT) => true,
            // It has let go of what there was, and the toolstack does not want it to end.
            Ok(XenbusState::CLOSED) => xs.read(&path.join("online").ok()?) == Ok(b"1"),
            _ => false,
        };
        ready.then_some(index)
    }

    fn connect(&'static self, index: u32, deadline: Duration) -> Option<Disk> {
        let (mut xs, config) = (self.store.borrow_mut(), Config { timeout: ANSWER, ..Config::default() });
        let front = BlkFront::connect_with(&mut xs, self.events, self.grants, index, deadline, config);
        let connected = front.and_then(|front| {
            let (size, sector) = (front.capacity() / 2048, front.sector_size());
            let access = if front.is_read_only() { "read-only" } else { "read and write" };
            log::info!("disk: vbd/{index} connected, {size} MiB, sectors of {sector} bytes, {access}");
            Ok(Disk {
                disk: SdmmcDisk::new(front)?,
                slot: self,
                silent: Cell::default(),
                #[cfg(feature = "suspend")]
                coming: suspend::Coming::default(),
            })
        });
        connected.inspect_err(|error| log::error!("disk: {error}; carrying on without")).ok()
    }
}

/// The directory of the disks.
const DISKS: &str = "device/vbd";

#[derive(Debug)]
pub(crate) struct Disk {
    disk: SdmmcDisk<'static, &'static Kernel>,
    slot: &'static Slot,
    /// Whether an answer did not come in time.
    silent: Cell<bool>,
    /// Its backend in a new domain.
    #[cfg(feature = "suspend")]
    coming: suspend::Coming,
}

impl Disk {
    /// Notes a disk that does not answer.
    fn heard<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(Error::TimedOut) = result {
            self.silent.set(true);
        }
        result
    }
}

#[cfg(not(feature = "suspend"))]
impl Disk {
    fn comes(&self) -> bool {
        false
    }

    fn arrive(&self) {}
}

impl BlockDevice for Disk {
    type Error = Error;

    fn read(&self, blocks: &mut [Block], start: BlockIdx) -> Result<(), Error> {
        self.arrive();
        self.heard(self.disk.read(blocks, start))
    }

    fn write(&self, blocks: &[Block], start: BlockIdx) -> Result<(), Error> {
        self.arrive();
        self.heard(self.disk.write(blocks, start))
    }

    fn num_blocks(&self) -> Result<BlockCount, Error> {
        self.disk.num_blocks()
    }
}

impl webserver::Disk for Disk {
    fn is_there(&self) -> bool {
        if self.comes() {
            return true;
        }
        if let Err(error) = self.disk.service(&mut self.slot.store.borrow_mut()) {
            log::debug!("disk: {error}");
        }
        !self.silent.get() && self.disk.with(|front| front.state()) == State::Connected
    }

    #[cfg(feature = "suspend")]
    fn is_awaited(&self) -> bool {
        self.coming.awaited.get()
    }

    fn read_only(&self) -> bool {
        self.disk.with(|front| front.is_read_only())
    }

    fn flush(&self) -> Result<(), Error> {
        self.arrive();
        self.heard(self.disk.flush())
    }

    fn report(&self, to: &mut dyn Report) {
        let (index, state, stats) = self.disk.with(|front| (front.index(), front.state(), front.stats()));
        to.section("Disk");
        to.fact("disk", &format_args!("vbd/{index}, {state}"));
        to.figure("disk_requests_total", stats.requests);
        to.figure("disk_read_bytes_total", stats.bytes_read);
        to.figure("disk_written_bytes_total", stats.bytes_written);
        to.figure("disk_errors_total", stats.errors);
        to.figure("disk_notifications_total", stats.notifications);
    }

    fn close(self) {
        self.arrive();
        let Self { disk, slot, .. } = self;
        let front = disk.into_inner();
        if let State::Broken(_) = front.state() {
            slot.avoided.set(Some(front.index()));
        }
        let mut xs = slot.store.borrow_mut();
        let deadline = xs.now() + CLOSING;
        if let Err(error) = front.close(&mut xs, deadline) {
            log::warn!("disk: {error}");
        }
    }
}

#[cfg(feature = "suspend")]
mod suspend {
    use core::cell::Cell;
    use core::fmt;
    use core::time::Duration;

    use xen_blkfront::BlkFront;
    use xen_xenstore::Xenstore;
    use xen_xenstore::suspend::Device;

    use super::Disk;
    use crate::platform::Kernel;

    type Front = BlkFront<'static, &'static Kernel>;
    type Xs = Xenstore<'static, &'static Kernel>;

    type Begun = <Front as Device<'static, &'static Kernel>>::Begun;

    /// A backend that connects, once it was told of the new domain, and how long all of that may take.
    #[derive(Default)]
    pub(super) struct Coming {
        begun: Cell<Option<Begun>>,
        deadline: Cell<Duration>,
        pub(super) awaited: Cell<bool>,
    }

    impl fmt::Debug for Coming {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.awaited.fmt(f)
        }
    }

    impl Disk {
        /// Whether its backend has still to connect. Does not wait for that.
        pub(super) fn comes(&self) -> bool {
            if !self.coming.awaited.get() {
                return false;
            }
            let xs = &mut self.slot.store.borrow_mut();
            let mut begun = self.begun(xs);
            let waits = xs.now() < self.coming.deadline.get() && !begun.is_decided(xs);
            self.coming.begun.set(Some(begun));
            if !waits {
                self.finish_by(xs);
            }
            waits
        }

        /// Tells its backend of the new domain, unless it was told.
        fn begun(&self, xs: &mut Xs) -> Begun {
            let begin = || self.disk.with_mut(|front| front.begin(xs, self.coming.deadline.get()));
            self.coming.begun.take().unwrap_or_else(begin)
        }

        /// Waits until its backend has connected.
        pub(super) fn arrive(&self) {
            if self.coming.awaited.get() {
                self.finish_by(&mut self.slot.store.borrow_mut());
            }
        }

        fn finish_by(&self, xs: &mut Xs) {
            if !self.coming.awaited.take() {
                return;
            }
            let begun = self.begun(xs);
            if self.disk.with_mut(|front| front.finish(begun, xs, self.coming.deadline.get())) > 0 {
                log::warn!("disk: it did not come along");
            }
        }
    }

    /// The disk that the file system has, through its adapter. Its backend is told of the new domain when the machine has said what it
    /// can say without the disk: two backends that connect at the same time hinder each other. While it connects others are served.
    impl Device<'static, &'static Kernel> for &Disk {
        type Begun = ();

        fn quiesce(&mut self, xs: &mut Xs) {
            self.finish_by(xs);
            self.disk.with_mut(|front| front.quiesce(xs));
        }

        fn begin(&mut self, _: &mut Xs, deadline: Duration) {
            self.coming.deadline.set(deadline);
            self.coming.awaited.set(true);
        }

        fn finish(&mut self, (): (), _: &mut Xs, _: Duration) -> usize {
            0
        }

        fn go_on(&mut self) {
            self.disk.with_mut(Front::go_on);
        }
    }
}
