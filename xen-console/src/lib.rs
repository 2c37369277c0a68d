#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

#[cfg(feature = "mock")]
extern crate std;

#[cfg(any(feature = "embedded-io-v0-7", feature = "embedded-io-async-v0-7"))]
pub mod adapters;
mod console;
mod error;
mod layout;
mod line;
#[cfg(feature = "log")]
pub mod log;
#[cfg(feature = "mock")]
pub mod mock;
mod page;
mod restore;
#[cfg(feature = "xenbus")]
mod secondary;
mod shared;
mod text;
#[cfg(feature = "xenbus")]
mod way;
mod xen;

pub use console::{Console, Stats};
pub use error::{Error, Violation};
pub use line::{Line, LineReader};
#[cfg(feature = "xenbus")]
pub use secondary::{SecondaryConsole, State};
pub use shared::SharedConsole;
pub use text::LINE;
pub use xen::XenConsole;
