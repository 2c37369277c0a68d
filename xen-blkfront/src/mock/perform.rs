//! What requests mean.

use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use xen_gnttab::GrantRef;

use super::backend::Backend;
use crate::abi::*;

const PAGE: usize = xen_hypercall::PAGE_SIZE;

impl Backend {
    /// The request's status; an error for what no guest may ask.
    pub(super) fn perform(&mut self, request: &Request) -> Result<i16, String> {
        let segments = || {
            let all = request.segment.get(..request.segments.into()).ok_or("more than 11 segments")?;
            Ok::<_, String>(all.to_vec())
        };
        match request.operation {
            OP_READ | OP_WRITE => self.transfer(request.operation, request.sector, &segments()?),
            OP_INDIRECT => self.indirect(&request.as_kind().ok_or("a short request")?),
            OP_BARRIER if !self.word.barrier => Ok(RSP_EOPNOTSUPP),
            OP_BARRIER => {
                self.flush()?;
                let segments = segments()?;
                if segments.is_empty() {
                    Ok(RSP_OKAY)
                } else {
                    self.transfer(OP_WRITE, request.sector, &segments)
                }
            }
            OP_FLUSH if !self.word.flush => Ok(RSP_EOPNOTSUPP),
            OP_FLUSH if request.segments == 0 => self.flush().map(|()| RSP_OKAY),
            OP_FLUSH => Err("a flush with segments".into()),
            OP_DISCARD => self.discard(&request.as_kind().ok_or("a short request")?),
            other => Err(format!("operation {other}")),
        }
    }

    fn flush(&mut self) -> Result<(), String> {
        self.storage.flush().map_err(|error| error.to_string())
    }

    fn discard(&mut self, request: &RequestDiscard) -> Result<i16, String> {
        let Some(offer) = self.word.discard else { return Ok(RSP_EOPNOTSUPP) };
        if self.word.read_only {
            return Err("a discard on a disk that cannot be written".into());
        }
        let secure = request.flag & DISCARD_SECURE != 0;
        let end = request.sector.checked_add(request.sectors).filter(|end| *end <= self.word.sectors);
        let end = end.ok_or("a discard beyond the end of the disk")?.saturating_mul(SECTOR as u64);
        let end = end.min(self.storage.len());
        let start = request.sector.saturating_mul(SECTOR as u64);
        let each = u64::from(offer.granularity.unwrap_or(self.word.sector_size));
        let first = u64::from(offer.alignment.unwrap_or(0));
        if secure && !offer.secure {
            return Err("a secure discard, which was not offered".into());
        }
        // What is not a whole extent stays.
        let mut at =
            if start <= first { first } else { first.saturating_add((start - first).next_multiple_of(each)) };
        while at.saturating_add(each) <= end {
            let left = vec![if secure { 0 } else { 0xDC }; each as usize];
            self.storage.write(at, &left).map_err(|error| error.to_string())?;
            at += each;
        }
        Ok(RSP_OKAY)
    }

    fn indirect(&mut self, request: &RequestIndirect) -> Result<i16, String> {
        let most = self.word.indirect_segments.ok_or("an indirect request, which was not offered")?;
        let count = usize::from(request.segments);
        if count == 0 || count > most.into() || count > MAX_INDIRECT_PAGES * SEGMENTS_PER_PAGE {
            return Err(format!("{count} indirect segments"));
        }
        if !matches!(request.indirect_op, OP_READ | OP_WRITE) {
            return Err(format!("indirect operation {}", request.indirect_op));
        }
        let mut segments: Vec<Segment> = Vec::with_capacity(count);
        for gref in request.grefs.iter().take(count.div_ceil(SEGMENTS_PER_PAGE)) {
            let mut page = self.mapped.take(
                &self.dom0,
                self.guest.id(),
                GrantRef(*gref),
                self.maps_writable(OP_WRITE),
            )?;
            for index in 0..(count - segments.len()).min(SEGMENTS_PER_PAGE) {
                let segment = page.mem().read(index * size_of::<Segment>());
                segments.push(segment.map_err(|error| error.to_string())?);
            }
            self.done_with(page);
        }
        self.transfer(request.indirect_op, request.sector, &segments)
    }

    /// Whether pages are mapped to be written to: always when they stay mapped, as the next request may be a read.
    fn maps_writable(&self, operation: u8) -> bool {
        operation == OP_READ || self.link.as_ref().is_some_and(|link| link.persistent)
    }

    fn done_with(&mut self, page: xen_gnttab::mock::MockMapping) {
        if self.hit(false, |faults| faults.keep_mapped) {
            let again = xen_gnttab::mock::map(&self.dom0, self.guest.id(), page.gref(), page.is_writable());
            self.mapped.kept.extend(again);
        }
        if self.mapped.holds || self.link.as_ref().is_some_and(|link| link.persistent) {
            let limit = if self.mapped.holds { usize::MAX } else { self.options.persistent_limit };
            self.mapped.keep(page, limit);
        }
    }

    fn transfer(&mut self, operation: u8, sector: u64, segments: &[Segment]) -> Result<i16, String> {
        if segments.is_empty() {
            return Err("a transfer of nothing".into());
        }
        if operation == OP_WRITE && self.word.read_only {
            return Err("a write to a disk that cannot be written".into());
        }
        let each = u64::from(self.word.sector_size);
        let mut at = sector.checked_mul(SECTOR as u64).ok_or("a sector beyond all memory")?;
        if at % each != 0 {
            return Err(format!("sector {sector} is not aligned"));
        }
        let mut bytes = [0; PAGE];
        for segment in segments {
            let (first, last) = (usize::from(segment.first), usize::from(segment.last));
            if first > last || last >= PAGE / SECTOR {
                return Err(format!("segment {segment:?}"));
            }
            let len = (last - first + 1) * SECTOR;
            if len as u64 % each != 0 {
                return Err(format!("segment {segment:?} is not of whole sectors"));
            }
            let end = at.checked_add(len as u64).ok_or("beyond all memory")?;
            if end > self.word.sectors.saturating_mul(SECTOR as u64) {
                return Err("beyond the end of the disk".into());
            }
            if end > self.storage.len() {
                // The guest was told of more than there is.
                return Ok(RSP_ERROR);
            }
            let gref = GrantRef(segment.gref);
            let mut page =
                self.mapped.take(&self.dom0, self.guest.id(), gref, self.maps_writable(operation))?;
            let data = &mut bytes[..len];
            if operation == OP_READ {
                self.storage.read(at, data).map_err(|error| error.to_string())?;
                page.mem().write_bytes(first * SECTOR, data).map_err(|error| error.to_string())?;
            } else {
                page.mem().read_bytes(first * SECTOR, data).map_err(|error| error.to_string())?;
                self.storage.write(at, data).map_err(|error| error.to_string())?;
            }
            self.done_with(page);
            at += len as u64;
        }
        Ok(RSP_OKAY)
    }
}
