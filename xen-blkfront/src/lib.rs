#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

#[cfg(feature = "mock")]
extern crate std;

pub mod abi;
mod adapters;
mod blocking;
mod blocking_way;
mod connect;
mod disk;
mod error;
mod features;
mod front;
mod layout;
mod lent;
mod lifecycle;
#[cfg(feature = "mock")]
pub mod mock;
mod ops;
mod piece;
mod pool;
mod queue;
mod receive;
mod resume;
mod send;
mod shared;
mod stats;
mod table;
mod tasks_way;
mod ticket;
mod transport;
mod waiters;

#[cfg(feature = "block-device-driver-v0-2")]
pub use adapters::blocks;
#[cfg(feature = "embedded-io-v0-7")]
pub use adapters::cursor;
#[cfg(feature = "embedded-sdmmc-v0-10")]
pub use adapters::sdmmc;
#[cfg(feature = "embedded-io-async-v0-7")]
pub use adapters::shared_cursor;
#[cfg(feature = "embedded-storage-async-v0-4")]
pub use adapters::shared_storage;
#[cfg(feature = "embedded-storage-v0-3")]
pub use adapters::storage;
pub use connect::{Config, Connecting};
pub use disk::{Control, Disk, DiskHandle, Drive};
pub use error::{Error, Violation};
pub use features::Discard;
pub use front::{BlkFront, State};
pub use lent::{BlkQueue, Rejected};
pub use piece::Piece;
pub use resume::Resuming;
pub use stats::Stats;
pub use ticket::Ticket;
