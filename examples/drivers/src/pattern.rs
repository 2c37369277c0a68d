//! What tests write to sectors, and expect there. Shared by the kernel and by dom0's judge of it.

use core::ops::Range;

/// Bytes of a sector.
pub(crate) const SECTOR: usize = 512;
/// The bad sectors of the disk that has some.
pub(crate) const BAD: Range<u64> = 1000..1008;

/// Fills whole sectors, from number `lba` on, with what stands there after so many rounds of writing: another content for
/// each sector and round, zeroes before the first.
pub(crate) fn fill(lba: u64, round: u8, out: &mut [u8]) {
    for (sector, bytes) in (lba..).zip(out.chunks_mut(SECTOR)) {
        let mut word = (sector << 8 | u64::from(round)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for bytes in bytes.chunks_mut(8) {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            let content = if round == 0 { [0; 8] } else { word.to_le_bytes() };
            bytes.copy_from_slice(content.get(..bytes.len()).unwrap_or_default());
        }
    }
}

/// A sum of bytes in which their order counts.
pub(crate) fn sum(bytes: &[u8], before: u64) -> u64 {
    bytes.iter().fold(before, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
