#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

// A kernel runs on the machine (`metal` on `arch`), or in a process (`hosted`). Each has the same few items for what is
// above: the entry, the console. A build script wants none of it.

#[cfg(any(feature = "hosted", feature = "build"))]
extern crate std;

#[cfg(feature = "smp")]
#[cfg(any(feature = "hosted", not(feature = "build")))]
extern crate alloc;

#[cfg(any(test, not(any(feature = "hosted", feature = "build"))))]
mod arch;
#[cfg(feature = "build")]
pub mod build;
#[cfg(any(feature = "hosted", not(feature = "build")))]
#[cfg_attr(
    all(target_arch = "aarch64", not(feature = "smp")),
    allow(dead_code, reason = "its timer needs no channel")
)]
mod channels;
#[cfg(any(feature = "hosted", not(feature = "build")))]
pub mod console;
#[cfg(feature = "embassy")]
#[cfg(any(feature = "hosted", not(feature = "build")))]
pub mod embassy;
#[cfg(any(feature = "hosted", not(feature = "build")))]
mod entry;
#[cfg(feature = "hosted")]
mod hosted;
#[cfg(not(any(feature = "hosted", feature = "build")))]
mod lock;
#[cfg(feature = "log")]
#[cfg(any(feature = "hosted", not(feature = "build")))]
mod logger;
#[cfg(any(test, not(any(feature = "hosted", feature = "build"))))]
mod memory_map;
#[cfg(not(any(feature = "hosted", feature = "build")))]
mod metal;

#[cfg(feature = "rand_core")]
#[cfg(any(feature = "hosted", not(feature = "build")))]
pub mod random;

#[cfg(feature = "smp")]
#[cfg(any(feature = "hosted", not(feature = "build")))]
pub mod smp;

#[cfg(feature = "suspend")]
#[cfg(any(feature = "hosted", not(feature = "build")))]
pub mod suspend;

#[cfg(feature = "hosted")]
use hosted::{self as machine, lock};
#[cfg(not(any(feature = "hosted", feature = "build")))]
use metal as machine;

#[cfg(any(feature = "hosted", not(feature = "build")))]
pub use {
    entry::{Boot, Exit, Guest, Outcome, Start, crash, exit},
    machine::{Kernel, Memory, memory, selftest},
};

/// What the macros of this crate expand to.
#[doc(hidden)]
#[cfg(any(feature = "hosted", not(feature = "build")))]
pub mod __private {
    pub use crate::entry::{Program, run};
    #[cfg(feature = "hosted")]
    pub use crate::hosted::process;
}
