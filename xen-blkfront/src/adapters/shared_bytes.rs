//! A disk that tasks share as bytes: parts of sectors are read before they are written.

use xen_gnttab::OwnedPage;
use xen_hypercall::Platform;

use crate::abi::SECTOR;
use crate::{DiskHandle, Error};

/// A disk, and room for a sector. Nothing is remembered of the disk, for others use it, too.
pub(crate) struct SharedBytes<'d, 'x, P: Platform> {
    handle: DiskHandle<'d, 'x, P>,
    page: OwnedPage<'x, P>,
}

impl<'d, 'x, P: Platform> SharedBytes<'d, 'x, P> {
    pub(crate) fn new(handle: DiskHandle<'d, 'x, P>) -> Result<Self, Error> {
        let grants = handle.disk().look(|front| front.grants).ok_or(Error::Closed)?;
        Ok(Self { handle, page: grants.alloc_page()? })
    }

    pub(crate) fn handle(&self) -> DiskHandle<'d, 'x, P> {
        self.handle
    }

    /// The size; the crate has checked that all bytes of a disk can be counted.
    pub(crate) fn len(&self) -> u64 {
        self.handle.capacity() * SECTOR as u64
    }

    /// The bytes from a position on that go together: how many, and if they are a part of a sector, where in it they begin.
    fn span(&self, at: u64, len: usize) -> (usize, Option<usize>) {
        let each = self.handle.sector_size() as usize;
        let offset = (at % each as u64) as usize;
        if offset == 0 && len >= each {
            (len - len % each, None)
        } else {
            (len.min(each - offset), Some(offset))
        }
    }

    /// The bytes of a sector that `at` is within, and its first one of 512 bytes.
    async fn sector(&mut self, at: u64, offset: usize) -> Result<(u64, &mut [u8]), Error> {
        let lba = (at - offset as u64) / SECTOR as u64;
        let bytes = self.page.bytes_mut().get_mut(..self.handle.sector_size() as usize);
        let bytes = bytes.ok_or(Error::OutOfRange)?;
        self.handle.read(lba, bytes).await?;
        Ok((lba, bytes))
    }

    fn check(&self, at: u64, len: usize) -> Result<(), Error> {
        if self.handle.state().is_none() {
            return Err(Error::Closed);
        }
        match at.checked_add(len as u64) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(Error::OutOfRange),
        }
    }

    /// Reads all of `out`.
    pub(crate) async fn read(&mut self, mut at: u64, mut out: &mut [u8]) -> Result<(), Error> {
        self.check(at, out.len())?;
        while !out.is_empty() {
            let (len, part) = self.span(at, out.len());
            let (now, rest) = out.split_at_mut_checked(len).ok_or(Error::OutOfRange)?;
            match part {
                None => self.handle.read(at / SECTOR as u64, now).await?,
                Some(offset) => {
                    let (_, sector) = self.sector(at, offset).await?;
                    now.copy_from_slice(sector.get(offset..offset + len).ok_or(Error::OutOfRange)?);
                }
            }
            (at, out) = (at + len as u64, rest);
        }
        Ok(())
    }

    /// Writes all of `data`.
    pub(crate) async fn write(&mut self, mut at: u64, mut data: &[u8]) -> Result<(), Error> {
        self.check(at, data.len())?;
        if self.handle.is_read_only() {
            return Err(Error::ReadOnly);
        }
        while !data.is_empty() {
            let (len, part) = self.span(at, data.len());
            let (now, rest) = data.split_at_checked(len).ok_or(Error::OutOfRange)?;
            match part {
                None => self.handle.write(at / SECTOR as u64, now).await?,
                Some(offset) => {
                    let handle = self.handle;
                    let (lba, sector) = self.sector(at, offset).await?;
                    sector.get_mut(offset..offset + len).ok_or(Error::OutOfRange)?.copy_from_slice(now);
                    handle.write(lba, sector).await?;
                }
            }
            (at, data) = (at + len as u64, rest);
        }
        Ok(())
    }
}
