#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

#[cfg(feature = "mock")]
extern crate std;

pub mod abi;
mod adapters;
mod blocking;
mod connect;
mod error;
mod features;
mod front;
mod lifecycle;
#[cfg(feature = "mock")]
pub mod mock;
mod ops;
mod piece;
mod pool;
mod queue;
mod receive;
mod send;
mod table;
mod ticket;
mod transport;

#[cfg(feature = "embedded-sdmmc-v0-10")]
pub use adapters::sdmmc;
pub use connect::Config;
pub use error::{Error, Violation};
pub use features::Discard;
pub use front::{BlkFront, State, Stats};
pub use piece::Piece;
pub use ticket::Ticket;
