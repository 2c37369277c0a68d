//! What the machine's memory is used for, as far as the entry knows it.

/// Addresses from `start` up to, not including, `end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// More ranges than this are left out: memory that is not used.
const MOST_RAM: usize = 32;
/// More parts than this are never taken.
const MOST_TAKEN: usize = 8;
/// More of the command line is left out.
const MOST_TEXT: usize = 1024;
/// Memory is given out in whole pages.
const PAGE: u64 = 4096;

/// What the entry was told, copied out of memory that is then free for use.
#[derive(Debug)]
pub(crate) struct BootInfo {
    ram: [Range; MOST_RAM],
    ranges: usize,
    taken: [Range; MOST_TAKEN],
    parts: usize,
    cmdline: [u8; MOST_TEXT],
    cmdline_len: usize,
}

impl BootInfo {
    pub(crate) const fn new() -> Self {
        const NONE: Range = Range { start: 0, end: 0 };
        Self {
            ram: [NONE; MOST_RAM],
            ranges: 0,
            taken: [NONE; MOST_TAKEN],
            parts: 0,
            cmdline: [0; MOST_TEXT],
            cmdline_len: 0,
        }
    }

    /// There is memory.
    pub(crate) fn add_ram(&mut self, start: u64, size: u64) {
        if let Some(place) = self.ram.get_mut(self.ranges) {
            *place = Range { start, end: start.saturating_add(size) };
            self.ranges += 1;
        }
    }

    /// A part of the memory is in use: the image's, what the entry was told, what is a device's.
    pub(crate) fn take(&mut self, part: Range) {
        let place = self.taken.get_mut(self.parts).expect("the entry takes a few parts");
        *place = part;
        self.parts += 1;
    }

    /// Keeps the command line.
    pub(crate) fn set_cmdline(&mut self, text: &[u8]) {
        let len = text.len().min(self.cmdline.len());
        self.cmdline[..len].copy_from_slice(&text[..len]);
        self.cmdline_len = len;
    }

    /// Memory that there is, lowest first as Xen lists it.
    pub(crate) fn ram(&self) -> &[Range] {
        &self.ram[..self.ranges]
    }

    /// The command line; what is not UTF-8 is left out.
    pub(crate) fn cmdline(&self) -> &str {
        self.cmdline[..self.cmdline_len].utf8_chunks().next().map_or("", |chunk| chunk.valid())
    }

    /// Memory that nobody uses: whole pages of RAM, without the parts that are taken.
    pub(crate) fn usable(&self) -> impl Iterator<Item = Range> {
        self.ram().iter().flat_map(|ram| self.without_taken(*ram)).filter_map(|range| {
            let start = range.start.checked_next_multiple_of(PAGE)?;
            let end = range.end & !(PAGE - 1);
            (start < end).then_some(Range { start, end })
        })
    }

    fn without_taken(&self, ram: Range) -> impl Iterator<Item = Range> {
        let mut at = ram.start;
        core::iter::from_fn(move || {
            while at < ram.end {
                let taken = self.taken[..self.parts].iter().filter(|part| part.start < part.end);
                // What is taken next from here on, or is here already.
                let next = taken.filter(|part| part.end > at).min_by_key(|part| part.start);
                let Range { start, end } = next.copied().unwrap_or(Range { start: ram.end, end: ram.end });
                let free = Range { start: at, end: start.min(ram.end) };
                at = end;
                if free.start < free.end {
                    return Some(free);
                }
            }
            None
        })
    }
}
