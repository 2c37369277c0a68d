//! What has to stand on the disk.

use alloc::vec;
use alloc::vec::Vec;

use check_report::{Failure, ensure};

use super::Disk;
use crate::pattern::{SECTOR, fill, sum};

/// Sectors that are looked after.
pub(super) const SECTORS: u64 = 16384;

/// How often each sector was written.
pub(super) struct Model(Vec<u8>);

impl Model {
    pub(super) fn new() -> Self {
        Self(vec![0; SECTORS as usize])
    }

    pub(super) fn round(&self, lba: u64) -> u8 {
        self.0.get(lba as usize).copied().unwrap_or(0)
    }

    /// What is to be written next. All sectors get one and the same round, that of the first.
    pub(super) fn next(&mut self, lba: u64, sectors: u64) -> Vec<u8> {
        let most = self.rounds(lba, sectors).iter().max().map_or(0, |round| *round);
        let round = most.wrapping_add(1).max(1);
        self.rounds(lba, sectors).fill(round);
        let mut data = vec![0; sectors as usize * SECTOR];
        fill(lba, round, &mut data);
        data
    }

    /// These hold zeroes again.
    pub(super) fn discarded(&mut self, lba: u64, sectors: u64) {
        self.rounds(lba, sectors).fill(0);
    }

    /// A sum of all that stands there.
    pub(super) fn sum(&self) -> u64 {
        let mut bytes = [0; SECTOR];
        (0..).zip(&self.0).fold(0, |before, (sector, round)| {
            fill(sector, *round, &mut bytes);
            sum(&bytes, before)
        })
    }

    fn rounds(&mut self, lba: u64, sectors: u64) -> &mut [u8] {
        self.0.get_mut(lba as usize..(lba + sectors) as usize).unwrap_or_default()
    }

    /// Whether bytes are what is to be read there.
    pub(super) fn expect(&self, lba: u64, bytes: &[u8]) -> Result<(), Failure> {
        let mut right = [0; SECTOR];
        for (sector, bytes) in (lba..).zip(bytes.chunks(SECTOR)) {
            fill(sector, self.round(sector), &mut right);
            ensure!(bytes == right, "sector {sector} is not as in round {}", self.round(sector));
        }
        Ok(())
    }

    /// Reads and compares.
    pub(super) fn check(&self, disk: &mut Disk, lba: u64, sectors: u64) -> Result<(), Failure> {
        let mut out = vec![0; sectors as usize * SECTOR];
        disk.read(lba, &mut out)?;
        self.expect(lba, &out)
    }

    /// The whole of it.
    pub(super) fn check_all(&self, disk: &mut Disk) -> Result<(), Failure> {
        (0..SECTORS).step_by(4096).try_for_each(|lba| self.check(disk, lba, 4096))
    }
}
