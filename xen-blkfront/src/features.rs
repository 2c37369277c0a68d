//! What the backend tells about the disk and can do, checked before anything relies on it.

use xen_xenstore::parse;

use crate::abi::{DiskInfo, MAX_INDIRECT_PAGES, MAX_SEGMENTS, SECTOR, SEGMENTS_PER_PAGE};
use crate::{Config, Error};

/// Size and abilities of a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// In units of 512 bytes, whole sectors of the disk; the bytes fit a `u64`. None in a drive without a medium.
    pub(crate) sectors: u64,
    /// 512 to 4096, a power of two.
    pub(crate) sector_size: u32,
    /// A multiple of `sector_size`.
    pub(crate) physical: u32,
    pub(crate) info: DiskInfo,
    pub(crate) read_only: bool,
    pub(crate) flush: bool,
    pub(crate) barrier: bool,
    /// One of the two was offered, whatever came of it: what is not flushed may be lost.
    pub(crate) volatile: bool,
    pub(crate) discard: Option<Discard>,
    pub(crate) persistent: bool,
    /// Most segments of an indirect request; none, or more than fit the other kind.
    pub(crate) indirect: Option<usize>,
    /// The toolstack trusts the backend.
    pub(crate) trusted: bool,
}

/// What can be discarded: extents of the disk's medium.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Discard {
    /// The size of an extent, in sectors of 512 bytes.
    pub granularity: u64,
    /// Where the first begins, in sectors of 512 bytes.
    pub alignment: u64,
    /// Whether a discard can be told to leave no copy.
    pub secure: bool,
}

impl Features {
    /// What is made of that. `trusted` is what the toolstack says.
    pub(crate) fn of(said: &Said, trusted: bool) -> Result<Self, Error> {
        said.read?;
        let sector_size = said.number(Node::SectorSize);
        if said.is_bad(Node::SectorSize) {
            return Err(Error::BadNode("sector-size"));
        }
        let (sectors, sector_size) = check(said.large(Node::Sectors), sector_size)?;
        let physical = said.number(Node::PhysicalSectorSize);
        let info = DiskInfo::from_bits_retain(said.number(Node::Info).unwrap_or(0));
        // Extents that make no sense could be any: then nothing is discarded.
        let sense = !said.is_bad(Node::DiscardGranularity) && !said.is_bad(Node::DiscardAlignment);
        let discard = if said.flag(Node::Discard) && sense {
            let granularity = said.number(Node::DiscardGranularity);
            let extents = extents(sector_size, granularity, said.number(Node::DiscardAlignment));
            let secure = said.flag(Node::DiscardSecure);
            extents.map(|(granularity, alignment)| Discard { granularity, alignment, secure })
        } else {
            None
        };
        let indirect = said.number(Node::Indirect);
        Ok(Self {
            sectors,
            sector_size,
            physical: physical
                .filter(|physical| *physical != 0 && physical % sector_size == 0)
                .unwrap_or(sector_size),
            info,
            read_only: info.contains(DiskInfo::READONLY) || said.read_only,
            flush: said.flag(Node::Flush),
            barrier: said.flag(Node::Barrier),
            volatile: said.flag(Node::Flush) || said.flag(Node::Barrier),
            discard,
            persistent: said.flag(Node::Persistent),
            indirect: indirect
                .map(|most| (most as usize).min(MAX_INDIRECT_PAGES * SEGMENTS_PER_PAGE))
                .filter(|most| *most > MAX_SEGMENTS),
            trusted,
        })
    }

    /// The backend has told the size anew.
    pub(crate) fn resize(&mut self, sectors: Result<Option<u64>, xen_xenstore::Error>) -> Result<(), Error> {
        let sectors = sectors.map_err(bad("sectors"))?;
        (self.sectors, _) = check(sectors, Some(self.sector_size))?;
        Ok(())
    }

    /// Whether a flush does anything.
    #[inline]
    pub(crate) fn can_flush(&self) -> bool {
        self.flush || self.barrier
    }

    /// Most segments of one request.
    pub(crate) fn max_segments(&self, config: &Config) -> usize {
        let most = self.indirect.unwrap_or(MAX_SEGMENTS);
        most.min(config.segments.max(MAX_SEGMENTS))
    }

    /// Whether numbers, all their bits taken together, are of whole sectors of the disk. Counted in units of 512 bytes.
    #[inline]
    pub(crate) fn check_grain(&self, bits: u64) -> Result<(), Error> {
        let each = u64::from(self.sector_size / SECTOR as u32);
        // A power of two.
        if bits & (each - 1) == 0 { Ok(()) } else { Err(Error::Unaligned) }
    }

    /// Whether a request is about whole sectors of the disk, and some. Counted in units of 512 bytes, as all here.
    #[inline]
    pub(crate) fn check_range(&self, lba: u64, sectors: u64) -> Result<(), Error> {
        if sectors == 0 {
            return Err(Error::Unaligned);
        }
        self.check_grain(lba | sectors)?;
        self.check_within(lba, sectors)
    }

    /// Whether sectors are all on the disk.
    #[inline]
    pub(crate) fn check_within(&self, lba: u64, sectors: u64) -> Result<(), Error> {
        match lba.checked_add(sectors) {
            Some(end) if end <= self.sectors => Ok(()),
            _ => Err(Error::OutOfRange),
        }
    }
}

impl Discard {
    /// The whole extents that are within these sectors: where they begin, and how many sectors they are.
    pub(crate) fn within(&self, lba: u64, sectors: u64) -> (u64, u64) {
        let Self { granularity, alignment, .. } = *self;
        let end = lba.saturating_add(sectors);
        let start = match lba.checked_sub(alignment) {
            Some(offset) => offset.checked_next_multiple_of(granularity).map(|offset| offset + alignment),
            None => Some(alignment),
        };
        let Some(start) = start.filter(|start| *start < end) else { return (lba, 0) };
        let whole = end - start;
        (start, whole - whole % granularity)
    }
}

/// Believes extents that are of whole sectors; the answer counts 512 bytes.
fn extents(sector_size: u32, granularity: Option<u32>, alignment: Option<u32>) -> Option<(u64, u64)> {
    let (granularity, alignment) = (granularity.unwrap_or(sector_size), alignment.unwrap_or(0));
    let whole = granularity != 0 && granularity % sector_size == 0 && alignment % sector_size == 0;
    whole.then_some((u64::from(granularity) / SECTOR as u64, u64::from(alignment) / SECTOR as u64))
}

/// Believes a size if every byte of the disk has an address. A part of a sector at the end is left out.
fn check(sectors: Option<u64>, sector_size: Option<u32>) -> Result<(u64, u32), Error> {
    let size = sector_size.unwrap_or(SECTOR as u32);
    if !size.is_power_of_two() || !(SECTOR as u32..=4096).contains(&size) {
        return Err(Error::BadNode("sector-size"));
    }
    let sectors = sectors.filter(|sectors| sectors.checked_mul(SECTOR as u64).is_some());
    let sectors = sectors.ok_or(Error::BadNode("sectors"))?;
    Ok((sectors - sectors % (u64::from(size) / SECTOR as u64), size))
}

fn bad(node: &'static str) -> impl Fn(xen_xenstore::Error) -> Error {
    move |error| match error {
        xen_xenstore::Error::BadValue | xen_xenstore::Error::NotText => Error::BadNode(node),
        other => other.into(),
    }
}

/// A node of the backend's.
#[derive(Clone, Copy)]
enum Node {
    Sectors,
    SectorSize,
    PhysicalSectorSize,
    Info,
    Mode,
    Discard,
    DiscardGranularity,
    DiscardAlignment,
    DiscardSecure,
    Indirect,
    Flush,
    Barrier,
    Persistent,
}

/// How many there are.
const COUNT: usize = 13;

/// What a backend says about its disk. A node that makes no sense is as one that is not there, unless more depends on it.
pub(crate) struct Said {
    numbers: [Option<u64>; COUNT],
    /// A bit for each node that makes no sense.
    bad: u16,
    /// The toolstack's `mode` is `r`, not `w` with whatever follows it.
    read_only: bool,
    /// Whether the nodes could be read.
    read: Result<(), Error>,
}

impl Default for Said {
    fn default() -> Self {
        Self { numbers: [None; COUNT], bad: 0, read_only: false, read: Ok(()) }
    }
}

impl Said {
    /// The names of the nodes, each at the place of its [`Node`].
    pub(crate) const NODES: [&'static str; COUNT] = [
        "sectors",
        "sector-size",
        "physical-sector-size",
        "info",
        "mode",
        "feature-discard",
        "discard-granularity",
        "discard-alignment",
        "discard-secure",
        "feature-max-indirect-segments",
        "feature-flush-cache",
        "feature-barrier",
        "feature-persistent",
    ];

    /// Takes what a node says, by its place.
    pub(crate) fn take(&mut self, index: usize, value: Result<&[u8], xen_xenstore::Error>) {
        match value {
            Ok(value) => self.parse(index, value),
            Err(error) if error.is_not_found() => {}
            Err(error) => self.read = Err(error.into()),
        }
    }

    fn parse(&mut self, index: usize, value: &[u8]) {
        let sense = if index == Node::Mode as usize {
            let text = core::str::from_utf8(value).unwrap_or_default().trim();
            self.read_only = text == "r";
            true
        } else {
            let number: Option<u64> = parse(value).ok();
            let number =
                number.filter(|number| index == Node::Sectors as usize || *number <= u32::MAX.into());
            self.numbers.iter_mut().skip(index).take(1).for_each(|place| *place = number);
            number.is_some()
        };
        self.bad |= u16::from(!sense) << index;
    }

    fn is_bad(&self, node: Node) -> bool {
        self.bad & 1 << node as usize != 0
    }

    fn large(&self, node: Node) -> Option<u64> {
        self.numbers[node as usize]
    }

    fn number(&self, node: Node) -> Option<u32> {
        self.large(node).and_then(|number| number.try_into().ok())
    }

    fn flag(&self, node: Node) -> bool {
        self.number(node).is_some_and(|value| value != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        assert_eq!(check(Some(8), None), Ok((8, 512)));
        assert_eq!(check(Some(16), Some(4096)), Ok((16, 4096)));
        assert_eq!(check(Some(17), Some(4096)), Ok((16, 4096)));
        assert_eq!(check(Some(0), None), Ok((0, 512)));
        for sectors in [None, Some(u64::MAX), Some(1 << 55)] {
            assert_eq!(check(sectors, Some(4096)), Err(Error::BadNode("sectors")), "{sectors:?}");
        }
        for size in [0, 1, 256, 513, 8192, u32::MAX] {
            assert_eq!(check(Some(8), Some(size)), Err(Error::BadNode("sector-size")), "{size}");
        }
    }

    #[test]
    fn only_whole_extents_are_discarded() {
        let discard = Discard { granularity: 8, alignment: 3, secure: false };
        assert_eq!(discard.within(0, 100), (3, 96));
        assert_eq!(discard.within(3, 8), (3, 8));
        assert_eq!(discard.within(4, 15), (11, 8));
        assert_eq!(discard.within(4, 14), (11, 0));
        assert_eq!(discard.within(4, 6), (4, 0));
        assert_eq!(discard.within(0, 2), (0, 0));
        assert_eq!(discard.within(u64::MAX - 4, 4), (u64::MAX - 4, 0));
        assert_eq!(extents(512, None, None), Some((1, 0)));
        assert_eq!(extents(4096, Some(512), None), None);
        assert_eq!(extents(512, Some(0), None), None);
        assert_eq!(extents(512, Some(4096), Some(100)), None);
    }
}
