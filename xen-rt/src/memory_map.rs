//! What the entry was told: the memory, and the command line.

use core::str::from_utf8;

/// Addresses from `start` up to, not including, `end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// More ranges than this are left out: memory that is not used.
const MOST_RAM: usize = 32;
/// More of the command line is left out.
const MOST_TEXT: usize = 1024;
/// Memory is given out in whole pages.
const PAGE: u64 = 4096;

/// What the entry was told, copied out of memory that is then free for use.
#[derive(Debug)]
pub(crate) struct BootInfo {
    /// Those that nobody uses, in the order in which they were added, which is of no matter.
    free: [Range; MOST_RAM],
    ranges: usize,
    ram: u64,
    end: u64,
    cmdline: [u8; MOST_TEXT],
    cmdline_len: usize,
}

impl BootInfo {
    pub(crate) const fn new() -> Self {
        Self {
            free: [Range { start: 0, end: 0 }; MOST_RAM],
            ranges: 0,
            ram: 0,
            end: 0,
            cmdline: [0; MOST_TEXT],
            cmdline_len: 0,
        }
    }

    /// There is memory. All is told before a part of it is [taken](Self::take).
    pub(crate) fn add_ram(&mut self, start: u64, size: u64) {
        let end = start.saturating_add(size);
        self.ram = self.ram.saturating_add(size);
        self.end = self.end.max(end);
        self.push(Range { start, end });
    }

    fn push(&mut self, range: Range) {
        if let Some(place) = self.free.get_mut(self.ranges) {
            *place = range;
            self.ranges += 1;
        }
    }

    /// A part of the memory is in use: the image's, what the entry was told, what is a device's.
    pub(crate) fn take(&mut self, part: Range) {
        for index in 0..self.ranges {
            let Range { start, end } = self.free[index];
            if part.start < part.end && part.start < end && part.end > start {
                // What is below stays in its place, though it may be nothing; what is above is new.
                self.free[index].end = part.start.max(start);
                if part.end < end {
                    self.push(Range { start: part.end, end });
                }
            }
        }
    }

    /// Keeps the command line.
    pub(crate) fn set_cmdline(&mut self, text: &[u8]) {
        let len = text.len().min(self.cmdline.len());
        self.cmdline[..len].copy_from_slice(&text[..len]);
        self.cmdline_len = len;
    }

    /// How much memory there is, in bytes.
    pub(crate) fn ram(&self) -> u64 {
        self.ram
    }

    /// The end of the highest of it.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The command line, as far as it is UTF-8.
    pub(crate) fn cmdline(&self) -> &str {
        let text = &self.cmdline[..self.cmdline_len];
        let valid = from_utf8(text).map_or_else(|error| error.valid_up_to(), str::len);
        from_utf8(&text[..valid]).unwrap_or_default()
    }

    /// Memory that nobody uses, in whole pages.
    pub(crate) fn usable(&self) -> impl Iterator<Item = Range> {
        let whole = |Range { start, end }: &Range| Range {
            start: start.saturating_add(PAGE - 1) & !(PAGE - 1),
            end: end & !(PAGE - 1),
        };
        self.free[..self.ranges].iter().map(whole).filter(|range| range.start < range.end)
    }

    /// What of that is in a part that begins and ends with pages.
    pub(crate) fn usable_in(&self, part: Range) -> impl Iterator<Item = Range> {
        let within =
            move |range: Range| Range { start: range.start.max(part.start), end: range.end.min(part.end) };
        self.usable().map(within).filter(|range| range.start < range.end)
    }
}

#[cfg(test)]
mod tests;
