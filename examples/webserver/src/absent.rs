//! The card and the disk of an image that has none: no value of this type exists, and what would have used one is left
//! out of the image.

use embedded_sdmmc::{Block, BlockCount, BlockDevice, BlockIdx};
use smoltcp::phy::{Device, DeviceCapabilities, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::report::Report;
use crate::{Disk, Nic};

/// A device that is not there.
#[derive(Debug)]
pub enum Absent {}

impl Absent {
    /// Where a disk may come, which none does.
    pub fn come<D>(&self) -> Option<D> {
        match *self {}
    }
}

impl RxToken for Absent {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, _: F) -> R {
        match self {}
    }
}

impl TxToken for Absent {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, _: usize, _: F) -> R {
        match self {}
    }
}

impl Device for Absent {
    type RxToken<'a> = Self;
    type TxToken<'a> = Self;

    fn receive(&mut self, _: Instant) -> Option<(Self, Self)> {
        match *self {}
    }
    fn transmit(&mut self, _: Instant) -> Option<Self> {
        match *self {}
    }
    fn capabilities(&self) -> DeviceCapabilities {
        match *self {}
    }
}

impl Nic for Absent {
    const PRESENT: bool = false;

    fn mac(&self) -> [u8; 6] {
        match *self {}
    }
    fn arm(&mut self) -> bool {
        match *self {}
    }
    fn flush(&mut self) {
        match *self {}
    }
    fn has_moved(&mut self) -> bool {
        match *self {}
    }
    fn report(&self, _: &mut dyn Report) {
        match *self {}
    }
    fn close(self) {
        match self {}
    }
}

impl BlockDevice for Absent {
    type Error = core::convert::Infallible;

    fn read(&self, _: &mut [Block], _: BlockIdx) -> Result<(), Self::Error> {
        match *self {}
    }
    fn write(&self, _: &[Block], _: BlockIdx) -> Result<(), Self::Error> {
        match *self {}
    }
    fn num_blocks(&self) -> Result<BlockCount, Self::Error> {
        match *self {}
    }
}

impl Disk for Absent {
    const PRESENT: bool = false;

    fn is_there(&self) -> bool {
        match *self {}
    }
    fn read_only(&self) -> bool {
        match *self {}
    }
    fn flush(&self) -> Result<(), Self::Error> {
        match *self {}
    }
    fn report(&self, _: &mut dyn Report) {
        match *self {}
    }
    fn close(self) {
        match self {}
    }
}
