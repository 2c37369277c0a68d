//! What the backend tells about the disk, checked before anything relies on it.

use core::str::FromStr;

use xen_hypercall::{Platform, Wait};
use xen_xenstore::Xenstore;
use xen_xenstore::xenbus::Frontend;

use crate::Error;
use crate::abi::{DiskInfo, SECTOR};

/// Size and abilities of a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    /// In units of 512 bytes; the bytes fit a `u64`.
    pub(crate) sectors: u64,
    /// 512 to 4096, a power of two.
    pub(crate) sector_size: u32,
    pub(crate) info: DiskInfo,
    pub(crate) read_only: bool,
    pub(crate) can_flush: bool,
    pub(crate) persistent: bool,
}

impl Geometry {
    /// Reads it from a backend that is connected: before that not all of it need be there.
    pub(crate) fn read<S, P: Platform + Wait>(
        xs: &mut Xenstore<'_, P>,
        device: &Frontend<S>,
    ) -> Result<Self, Error> {
        let (sectors, sector_size): (Option<u64>, Option<u32>) =
            (number(xs, device, "sectors")?, number(xs, device, "sector-size")?);
        let (sectors, sector_size) = check(sectors, sector_size)?;
        let info: Option<u32> = number(xs, device, "info")?;
        let info = DiskInfo::from_bits_retain(info.unwrap_or(0));
        let mode: Option<Mode> = number(xs, device, "mode")?;
        Ok(Self {
            sectors,
            sector_size,
            info,
            read_only: info.contains(DiskInfo::READONLY) || matches!(mode, Some(Mode::ReadOnly)),
            can_flush: flag(xs, device, "feature-flush-cache")?,
            persistent: flag(xs, device, "feature-persistent")?,
        })
    }

    /// Whether a request is about whole sectors of the disk. Counted in units of 512 bytes, as all here.
    pub(crate) fn check_range(&self, lba: u64, sectors: u64) -> Result<(), Error> {
        let each = u64::from(self.sector_size) / SECTOR as u64;
        if sectors == 0 || lba % each != 0 || sectors % each != 0 {
            return Err(Error::Unaligned);
        }
        match lba.checked_add(sectors) {
            Some(end) if end <= self.sectors => Ok(()),
            _ => Err(Error::OutOfRange),
        }
    }
}

/// Believes a size if every byte of the disk has an address, and every sector is whole.
fn check(sectors: Option<u64>, sector_size: Option<u32>) -> Result<(u64, u32), Error> {
    let size = sector_size.unwrap_or(SECTOR as u32);
    if !size.is_power_of_two() || !(SECTOR as u32..=4096).contains(&size) {
        return Err(Error::BadNode("sector-size"));
    }
    let whole = |sectors: &u64| {
        *sectors != 0
            && sectors.checked_mul(SECTOR as u64).is_some()
            && sectors % (u64::from(size) / SECTOR as u64) == 0
    };
    Ok((sectors.filter(whole).ok_or(Error::BadNode("sectors"))?, size))
}

fn number<S, P: Platform + Wait, T: FromStr>(
    xs: &mut Xenstore<'_, P>,
    device: &Frontend<S>,
    node: &'static str,
) -> Result<Option<T>, Error> {
    device.read_backend(xs, node).map_err(|error| match error {
        xen_xenstore::Error::BadValue | xen_xenstore::Error::NotText => Error::BadNode(node),
        other => other.into(),
    })
}

fn flag<S, P: Platform + Wait>(
    xs: &mut Xenstore<'_, P>,
    device: &Frontend<S>,
    node: &'static str,
) -> Result<bool, Error> {
    let value: Option<u32> = number(xs, device, node)?;
    Ok(value.is_some_and(|value| value != 0))
}

/// The toolstack's `mode`: `r`, or `w` with whatever follows it.
enum Mode {
    ReadOnly,
    Writable,
}

impl FromStr for Mode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "r" => Ok(Self::ReadOnly),
            text if text.contains('w') => Ok(Self::Writable),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        assert_eq!(check(Some(8), None), Ok((8, 512)));
        assert_eq!(check(Some(16), Some(4096)), Ok((16, 4096)));
        for sectors in [None, Some(0), Some(9), Some(u64::MAX), Some(1 << 55)] {
            assert_eq!(check(sectors, Some(4096)), Err(Error::BadNode("sectors")), "{sectors:?}");
        }
        for size in [0, 1, 256, 513, 8192, u32::MAX] {
            assert_eq!(check(Some(8), Some(size)), Err(Error::BadNode("sector-size")), "{size}");
        }
    }
}
