#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

#[cfg(feature = "mock")]
extern crate std;

mod board;
mod channel;
mod channels;
mod error;
#[cfg(feature = "mock")]
pub mod mock;
mod port;
mod records;
#[cfg(not(loom))]
mod two_level;
#[cfg(loom)]
#[doc(hidden)]
pub mod two_level;

pub use channel::{Channel, ChannelStats, Status};
pub use channels::{EventChannels, Stats};
pub use error::Error;
pub use port::{Port, Virq};
