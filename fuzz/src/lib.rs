//! What a peer may do, and what a kernel may do with the crates, as inputs of fuzz targets.
//!
//! Each module is a target: what its inputs are, and `run`, which tries one. The programs in `fuzz_targets` only call
//! it, so that stable Rust can try the seeds and what was found before: `cargo test` does. See the README.

pub mod blkfront;
pub mod byte_ring;
pub mod console;
pub mod evtchn_ops;
pub mod gnttab_ops;
pub mod input;
pub mod machine;
pub mod netfront;
pub mod slot_ring;
pub mod xenbus;
pub mod xs_codec;
pub mod xs_session;

/// A target: its name, what tries an input, and the inputs it begins with.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of its program, its corpus and its regressions.
    pub name: &'static str,
    /// Tries an input; panics when something is wrong.
    pub run: fn(&[u8]),
    /// Inputs to begin with, and what each is called.
    pub seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        &[$(Target { name: stringify!($name), run: $name::run, seeds: $name::seeds }),*]
    };
}

/// All targets.
pub const TARGETS: &[Target] = targets![
    netfront, blkfront, xs_session, byte_ring, slot_ring, gnttab_ops, evtchn_ops, xenbus, console, xs_codec,
];
