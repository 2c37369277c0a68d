#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

#[cfg(feature = "mock")]
extern crate std;

mod console;
mod error;
mod line;
#[cfg(feature = "log")]
pub mod log;
#[cfg(feature = "mock")]
pub mod mock;
mod page;
mod xen;

pub use console::{Console, Stats};
pub use error::Error;
pub use line::{Line, LineReader};
pub use xen::XenConsole;
