//! Blkfront as the application's disk.

use core::time::Duration;

use embedded_sdmmc::{Block, BlockCount, BlockDevice, BlockIdx};
use webserver::report::Report;
use xen_blkfront::sdmmc::SdmmcDisk;
use xen_blkfront::{BlkFront, Error};

use super::Grants;
use crate::machine::{Events, Store};
use crate::platform::Kernel;

#[derive(Debug)]
pub(crate) struct Disk {
    disk: SdmmcDisk<'static, &'static Kernel>,
    store: Store,
}

/// Connects the first disk; without one, or when it does not come, says so and goes without.
pub(super) fn open_disk(store: Store, events: Events, grants: Grants, deadline: Duration) -> Option<Disk> {
    let front = BlkFront::connect_first(&mut store.borrow_mut(), events, grants, deadline);
    let connected = front.and_then(|front| {
        let (size, sector) = (front.capacity() / 2048, front.sector_size());
        let access = if front.is_read_only() { "read-only" } else { "read and write" };
        log::info!("disk: vbd/{} connected, {size} MiB, sectors of {sector} bytes, {access}", front.index());
        Ok(Disk { disk: SdmmcDisk::new(front)?, store })
    });
    match connected {
        Ok(disk) => Some(disk),
        Err(Error::NoDevice) => {
            log::warn!("disk: this domain has no disk (vbd)");
            None
        }
        Err(error) => {
            log::error!("disk: {error}; carrying on without");
            None
        }
    }
}

impl Disk {
    /// Follows the backend.
    fn service(&self) {
        if let Err(error) = self.disk.service(&mut self.store.borrow_mut()) {
            log::debug!("disk: {error}");
        }
    }
}

impl BlockDevice for Disk {
    type Error = Error;

    fn read(&self, blocks: &mut [Block], start: BlockIdx) -> Result<(), Error> {
        self.disk.read(blocks, start)
    }

    fn write(&self, blocks: &[Block], start: BlockIdx) -> Result<(), Error> {
        self.disk.write(blocks, start)
    }

    fn num_blocks(&self) -> Result<BlockCount, Error> {
        self.disk.num_blocks()
    }
}

impl webserver::Disk for Disk {
    fn read_only(&self) -> bool {
        self.disk.with(|front| front.is_read_only())
    }

    fn flush(&self) -> Result<(), Error> {
        self.service();
        self.disk.flush()
    }

    fn report(&self, to: &mut dyn Report) {
        self.service();
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
        let Self { disk, store } = self;
        let mut xs = store.borrow_mut();
        let deadline = xs.now() + crate::devices::CLOSING;
        if let Err(error) = disk.into_inner().close(&mut xs, deadline) {
            log::warn!("disk: {error}");
        }
    }
}
