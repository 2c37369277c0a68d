//! The disk, with many requests under way.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use embassy_futures::join::join_array;
use xen_blkfront::Error;
use xen_hypercall::{Platform, Wait};

use crate::Domain;
use crate::figures::count;

/// So many requests are under way at once.
pub(crate) const REQUESTS: usize = 32;
/// Each of so many bytes.
const REQUEST: usize = 4096;
pub(crate) const SECTOR: u64 = 512;

/// What all of them bring: a part of the disk.
pub(crate) struct Part(Vec<u8>);

impl Part {
    pub(crate) fn new() -> Self {
        Self(vec![0; REQUESTS * REQUEST])
    }

    /// Reads the first of some sectors, as many as fit. Less at the end of the disk, and nothing behind it.
    pub(crate) async fn read<P: Platform + Wait>(
        &mut self,
        domain: &Domain<P>,
        sectors: Range<u64>,
    ) -> Result<&[u8], Error> {
        let disk = domain.disk.handle();
        let left = sectors.end.min(disk.capacity()).saturating_sub(sectors.start).saturating_mul(SECTOR);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(self.0.len());
        let part = self.0.get_mut(..len).unwrap_or_default();
        let mut pieces = part.chunks_mut(REQUEST).zip((sectors.start..).step_by(REQUEST / SECTOR as usize));
        let reads: [_; REQUESTS] = core::array::from_fn(|_| {
            let piece = pieces.next();
            async move {
                match piece {
                    Some((piece, lba)) => disk.read(lba, piece).await,
                    None => Ok(()),
                }
            }
        });
        join_array(reads).await.into_iter().collect::<Result<(), Error>>()?;
        count(&domain.figures.read, len as u64);
        Ok(self.0.get(..len).unwrap_or_default())
    }
}

/// Reads a piece at each of as many places, all over the disk, so that none can be one request with another. Returns how many bytes
/// were read.
pub(crate) async fn read_all_over<P: Platform + Wait>(domain: &Domain<P>) -> Result<usize, Error> {
    let disk = domain.disk.handle();
    let far = disk.capacity() / REQUESTS as u64;
    let mut buffer = vec![0; REQUESTS * REQUEST];
    let mut pieces =
        buffer.chunks_mut(REQUEST).zip((0..).step_by(usize::try_from(far).unwrap_or(usize::MAX).max(1)));
    let reads: [_; REQUESTS] = core::array::from_fn(|_| {
        let piece = pieces.next();
        async move {
            match piece {
                // At a sector of the disk's own, whatever its size.
                Some((piece, lba)) => disk.read(lba / 8 * 8, piece).await,
                None => Ok(()),
            }
        }
    });
    join_array(reads).await.into_iter().collect::<Result<(), Error>>()?;
    count(&domain.figures.read, buffer.len() as u64);
    Ok(buffer.len())
}
