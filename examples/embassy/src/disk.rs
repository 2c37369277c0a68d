//! The disk, with many requests under way.

use alloc::vec;
use alloc::vec::Vec;

use embassy_futures::join::join_array;
use xen_blkfront::Error;
use xen_hypercall::{Platform, Wait};

use crate::Domain;
use crate::figures::count;

/// So many requests are under way at once.
pub(crate) const REQUESTS: usize = 32;
/// Each of so many bytes.
const REQUEST: usize = 4096;
const SECTOR: usize = 512;

/// What all of them bring: a part of the disk.
pub(crate) struct Part(Vec<u8>);

impl Part {
    pub(crate) fn new() -> Self {
        Self(vec![0; REQUESTS * REQUEST])
    }

    /// Reads as much as fits, from a sector on; less at the end of the disk, and nothing behind it.
    pub(crate) async fn read<P: Platform + Wait>(
        &mut self,
        domain: &Domain<P>,
        lba: u64,
    ) -> Result<&[u8], Error> {
        let disk = domain.disk.handle();
        let left = disk.capacity().saturating_sub(lba).saturating_mul(SECTOR as u64);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(self.0.len());
        let part = self.0.get_mut(..len).unwrap_or_default();
        let mut pieces = part.chunks_mut(REQUEST).zip((lba..).step_by(REQUEST / SECTOR));
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

/// The sectors of a part.
pub(crate) fn sectors(part: &[u8]) -> u64 {
    (part.len() / SECTOR) as u64
}
