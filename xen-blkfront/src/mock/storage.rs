//! Where the mock keeps its disk's bytes: in memory or in a file, with a cache in front that a loss of power empties.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use xen_hypercall::mock::Dice;

use crate::abi::SECTOR;

/// Both lists of a [`Cache`] have it.
type Sector = Arc<[u8]>;

/// A disk's bytes. Addresses are bytes, multiples of 512.
pub(super) struct Storage {
    medium: Medium,
    cache: Option<Cache>,
}

enum Medium {
    Memory(Vec<u8>),
    File { file: File, len: u64 },
}

/// What was written and not flushed: as it is read, and each write by itself.
#[derive(Default)]
struct Cache {
    current: BTreeMap<u64, Sector>,
    log: Vec<(u64, Sector)>,
}

impl Medium {
    fn read(&mut self, at: u64, out: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Memory(bytes) => {
                let at = usize::try_from(at).map_err(|_| io::ErrorKind::UnexpectedEof)?;
                let from = at.checked_add(out.len()).and_then(|end| bytes.get(at..end));
                out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
            Self::File { file, len } => {
                let room = (*len).saturating_sub(at).min(out.len() as u64) as usize;
                file.seek(SeekFrom::Start(at))?;
                out.get_mut(..room).map_or(Ok(()), |out| file.read_exact(out))?;
                if room < out.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
            }
        }
    }

    fn write(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Memory(bytes) => {
                let at = usize::try_from(at).map_err(|_| io::ErrorKind::UnexpectedEof)?;
                let to = at.checked_add(data.len()).and_then(|end| bytes.get_mut(at..end));
                to.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
                Ok(())
            }
            Self::File { file, len } => {
                if at.checked_add(data.len() as u64).is_none_or(|end| end > *len) {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                file.seek(SeekFrom::Start(at))?;
                file.write_all(data)
            }
        }
    }
}

impl Storage {
    pub(super) fn memory(len: usize, volatile: bool) -> Self {
        Self { medium: Medium::Memory(vec![0; len]), cache: volatile.then(Cache::default) }
    }

    pub(super) fn file(file: File, len: u64, volatile: bool) -> Self {
        Self { medium: Medium::File { file, len }, cache: volatile.then(Cache::default) }
    }

    pub(super) fn len(&self) -> u64 {
        match &self.medium {
            Medium::Memory(bytes) => bytes.len() as u64,
            Medium::File { len, .. } => *len,
        }
    }

    /// Makes it longer, with zeroes, or shorter.
    pub(super) fn resize(&mut self, new: u64) -> io::Result<()> {
        match &mut self.medium {
            Medium::Memory(bytes) => bytes.resize(usize::try_from(new).map_err(io::Error::other)?, 0),
            Medium::File { file, len } => {
                file.set_len(new)?;
                *len = new;
            }
        }
        if let Some(cache) = &mut self.cache {
            cache.current.retain(|at, _| *at < new);
            cache.log.retain(|(at, _)| *at < new);
        }
        Ok(())
    }

    pub(super) fn read(&mut self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.medium.read(at, out)?;
        let Some(cache) = &self.cache else { return Ok(()) };
        for (at, out) in (at..).step_by(SECTOR).zip(out.chunks_exact_mut(SECTOR)) {
            if let Some(sector) = cache.current.get(&at) {
                out.copy_from_slice(sector);
            }
        }
        Ok(())
    }

    pub(super) fn write(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        if at.checked_add(data.len() as u64).is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some(cache) = &mut self.cache else { return self.medium.write(at, data) };
        for (at, data) in (at..).step_by(SECTOR).zip(data.chunks_exact(SECTOR)) {
            let sector: Sector = Arc::from(data);
            cache.current.insert(at, Arc::clone(&sector));
            cache.log.push((at, sector));
        }
        Ok(())
    }

    /// Fills the medium from its beginning.
    pub(super) fn load(&mut self, content: &[u8]) -> io::Result<()> {
        self.flush()?;
        self.medium.write(0, content)?;
        self.flush()
    }

    /// Puts on the medium what is in the cache.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if let Some(cache) = &mut self.cache {
            for (at, sector) in core::mem::take(&mut cache.current) {
                self.medium.write(at, &sector)?;
            }
            cache.log.clear();
        }
        match &mut self.medium {
            Medium::File { file, .. } => file.sync_data(),
            Medium::Memory(_) => Ok(()),
        }
    }

    /// The cache is gone. Of the writes in it any number, in any order, had reached the medium; returns how many had
    /// not. A sector is written whole or not at all.
    pub(super) fn power_loss(&mut self, dice: &Dice) -> io::Result<usize> {
        let Some(cache) = &mut self.cache else { return Ok(0) };
        let Cache { mut log, .. } = core::mem::take(cache);
        let mut lost = 0;
        while !log.is_empty() {
            let (at, sector) = log.swap_remove(dice.below(log.len() as u64) as usize);
            if dice.below(2) == 0 {
                lost += 1;
            } else {
                self.medium.write(at, &sector)?;
            }
        }
        Ok(lost)
    }

    /// Everything, as the guest would read it.
    pub(super) fn content(&mut self) -> io::Result<Vec<u8>> {
        let mut all = vec![0; usize::try_from(self.len()).map_err(io::Error::other)?];
        self.read(0, &mut all)?;
        Ok(all)
    }
}
