//! What a backend told the guest, which it keeps to.

use std::string::String;

use super::backend::Backend;
use super::{Discard, Options};
use crate::abi::DiskInfo;

impl Backend {
    /// The backend's [options](Options) as its nodes tell them, [lies](super::MockBlkback::lie) included: what the guest may rely
    /// on. A node that is not there, or makes no sense, offers nothing; a size that makes no sense is not believed by any guest.
    pub(super) fn given_word(&self) -> Options {
        let text = |node: &str| self.store.read(&[&*self.back_path, "/", node].concat());
        let large = |node: &str| text(node)?.trim().parse::<u64>().ok();
        let number = |node: &str| large(node).and_then(|number| u32::try_from(number).ok());
        let says = |node: &str| number(node).unwrap_or(0) != 0;
        let info = DiskInfo::from_bits_retain(number("info").unwrap_or(0));
        let mode: Option<String> = text("mode");
        let own = self.options;
        let sector_size =
            number("sector-size").filter(|size| size.is_power_of_two() && (512..=4096).contains(size));
        let sector_size = sector_size.unwrap_or(own.sector_size);
        let granularity = number("discard-granularity");
        // No guest discards extents that are not whole sectors.
        let whole = granularity.is_none_or(|bytes| bytes != 0 && bytes % sector_size == 0);
        Options {
            sectors: large("sectors").unwrap_or(own.sectors),
            sector_size,
            read_only: info.contains(DiskInfo::READONLY) || mode.is_some_and(|mode| mode.trim() == "r"),
            flush: says("feature-flush-cache"),
            barrier: says("feature-barrier"),
            discard: (says("feature-discard") && whole).then(|| Discard {
                granularity,
                alignment: number("discard-alignment"),
                secure: says("discard-secure"),
            }),
            persistent: says("feature-persistent"),
            indirect_segments: number("feature-max-indirect-segments")
                .map(|most| u16::try_from(most).unwrap_or(u16::MAX)),
            max_ring_page_order: number("max-ring-page-order"),
            max_ring_pages: number("max-ring-pages"),
            max_queues: number("multi-queue-max-queues"),
            ..own
        }
    }
}
