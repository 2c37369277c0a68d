//! What kernels that check something have in common: a line for each check, and the words of the command line.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod report;
mod words;

#[doc(hidden)]
pub use alloc::format;
pub use report::{Failure, Report};
pub use words::Words;
