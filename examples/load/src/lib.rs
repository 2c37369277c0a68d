//! What is measured of a disk, the same for the SDK's own driver (`examples/drivers`) and for
//! Linux' (this package's program).
#![no_std]

/// Operations of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// How a line of figures begins.
    pub name: &'static str,
    /// Whether they write.
    pub writes: bool,
    /// Whether they go to places as by chance, not one after the other.
    pub random: bool,
    /// Bytes of each operation.
    pub size: usize,
    /// Operations under way.
    pub depth: usize,
    /// How many.
    pub ops: u32,
}

const fn job(name: &'static str, size: usize, depth: usize, ops: u32) -> Job {
    Job { name, writes: false, random: false, size, depth, ops }
}

const KIB: usize = 1024;

/// All jobs, in their order.
pub const JOBS: [Job; 10] = [
    Job { random: true, ..job("rand-read-4k", 4 * KIB, 1, 2000) },
    Job { random: true, ..job("rand-read-4k", 4 * KIB, 32, 8000) },
    job("seq-read-64k", 64 * KIB, 1, 1000),
    job("seq-read-64k", 64 * KIB, 8, 2000),
    Job { writes: true, ..job("seq-write-64k", 64 * KIB, 1, 1000) },
    Job { writes: true, ..job("seq-write-64k", 64 * KIB, 8, 2000) },
    job("seq-read-1m", 1024 * KIB, 1, 150),
    job("seq-read-1m", 1024 * KIB, 4, 300),
    Job { writes: true, ..job("seq-write-1m", 1024 * KIB, 1, 150) },
    Job { writes: true, ..job("seq-write-1m", 1024 * KIB, 4, 300) },
];

/// The next number of a sequence that looks like chance, the same for both.
pub fn next_place(chance: &mut u64) -> u64 {
    *chance ^= *chance << 13;
    *chance ^= *chance >> 7;
    *chance ^= *chance << 17;
    *chance
}

/// Where that sequence begins.
pub const CHANCE: u64 = 0x9e37_79b9_7f4a_7c15;
