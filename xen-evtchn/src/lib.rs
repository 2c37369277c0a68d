#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

#[cfg(feature = "mock")]
extern crate std;

pub mod abi;
mod channel;
mod channels;
mod deadline;
mod delivery;
mod error;
#[cfg(not(loom))]
mod fifo;
#[cfg(loom)]
#[doc(hidden)]
pub mod fifo;
mod layout;
mod masks;
#[cfg(feature = "mock")]
pub mod mock;
mod port;
mod record;
mod records;
mod restore;
#[cfg(not(loom))]
mod settle;
#[cfg(loom)]
#[doc(hidden)]
pub mod settle;
#[cfg(not(loom))]
mod state;
#[cfg(loom)]
#[doc(hidden)]
pub mod state;
#[cfg(not(loom))]
mod two_level;
#[cfg(loom)]
#[doc(hidden)]
pub mod two_level;
#[cfg(not(loom))]
mod waiting;
#[cfg(loom)]
#[doc(hidden)]
pub mod waiting;

pub use channel::{Channel, ChannelStats, Progress, Status};
pub use channels::{EventChannels, EventSeq, Stats};
pub use deadline::Deadline;
pub use delivery::Abi;
pub use error::Error;
pub use port::{Port, Priority, Virq};
pub use waiting::wake_all;
