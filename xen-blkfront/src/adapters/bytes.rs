//! The disk as bytes: parts of sectors are read before they are written.

use xen_gnttab::OwnedPage;
use xen_hypercall::{Platform, Wait};

use crate::abi::SECTOR;
use crate::{BlkFront, Error};

/// A disk, and the sector of it that was used last.
pub(crate) struct Bytes<'x, P: Platform> {
    front: BlkFront<'x, P>,
    page: OwnedPage<'x, P>,
    /// The sector that is in the page, by its first byte.
    held: Option<u64>,
}

/// What a position is in: a part of one sector, or whole ones.
enum Span {
    /// The sector's first byte, where in it, and how much.
    Part(u64, usize, usize),
    /// So many bytes.
    Whole(usize),
}

impl<'x, P: Platform + Wait> Bytes<'x, P> {
    pub(crate) fn new(front: BlkFront<'x, P>) -> Result<Self, Error> {
        let page = front.grants().alloc_page()?;
        Ok(Self { front, page, held: None })
    }

    pub(crate) fn front(&self) -> &BlkFront<'x, P> {
        &self.front
    }

    /// The disk itself, to do something else with it: what is held may be wrong afterwards.
    pub(crate) fn front_mut(&mut self) -> &mut BlkFront<'x, P> {
        self.held = None;
        &mut self.front
    }

    pub(crate) fn into_front(self) -> BlkFront<'x, P> {
        self.front
    }

    /// The size; the crate has checked that all bytes of a disk can be counted.
    pub(crate) fn len(&self) -> u64 {
        self.front.capacity() * SECTOR as u64
    }

    fn span(&self, at: u64, len: usize) -> Span {
        let each = u64::from(self.front.sector_size());
        let (offset, each) = ((at % each) as usize, each as usize);
        if offset == 0 && len >= each {
            return Span::Whole(len - len % each);
        }
        Span::Part(at - offset as u64, offset, len.min(each - offset))
    }

    /// The bytes of a sector, which are held from then on.
    fn hold(&mut self, sector: u64) -> Result<&mut [u8], Error> {
        let len = self.front.sector_size() as usize;
        let bytes = self.page.bytes_mut().get_mut(..len).ok_or(Error::OutOfRange)?;
        if self.held != Some(sector) {
            self.held = None;
            self.front.read(sector / SECTOR as u64, bytes)?;
            self.held = Some(sector);
        }
        Ok(bytes)
    }

    fn check(&self, at: u64, len: usize) -> Result<(), Error> {
        match at.checked_add(len as u64) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(Error::OutOfRange),
        }
    }

    /// Reads all of `out`.
    pub(crate) fn read(&mut self, mut at: u64, mut out: &mut [u8]) -> Result<(), Error> {
        self.check(at, out.len())?;
        while !out.is_empty() {
            let span = self.span(at, out.len());
            let (Span::Part(_, _, len) | Span::Whole(len)) = span;
            let (now, rest) = out.split_at_mut_checked(len).ok_or(Error::OutOfRange)?;
            match span {
                Span::Part(sector, offset, len) => {
                    let held = self.hold(sector)?.get(offset..offset + len).ok_or(Error::OutOfRange)?;
                    now.copy_from_slice(held);
                }
                Span::Whole(_) => self.front.read(at / SECTOR as u64, now)?,
            }
            (at, out) = (at + len as u64, rest);
        }
        Ok(())
    }

    /// Writes all of `data`.
    pub(crate) fn write(&mut self, mut at: u64, mut data: &[u8]) -> Result<(), Error> {
        self.check(at, data.len())?;
        if self.front.is_read_only() {
            return Err(Error::ReadOnly);
        }
        while !data.is_empty() {
            let span = self.span(at, data.len());
            let (Span::Part(_, _, len) | Span::Whole(len)) = span;
            let (now, rest) = data.split_at_checked(len).ok_or(Error::OutOfRange)?;
            match span {
                Span::Part(sector, offset, len) => {
                    let held = self.hold(sector)?.get_mut(offset..offset + len).ok_or(Error::OutOfRange)?;
                    held.copy_from_slice(now);
                    // Until the disk has it, nobody knows what is there.
                    self.held = None;
                    let bytes = self.page.bytes().get(..self.front.sector_size() as usize);
                    self.front.write(sector / SECTOR as u64, bytes.ok_or(Error::OutOfRange)?)?;
                    self.held = Some(sector);
                }
                Span::Whole(_) => {
                    self.held = self.held.filter(|held| *held < at || *held >= at + len as u64);
                    self.front.write(at / SECTOR as u64, now)?;
                }
            }
            (at, data) = (at + len as u64, rest);
        }
        Ok(())
    }
}
