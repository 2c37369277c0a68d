#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

#[cfg(feature = "mock")]
extern crate std;

pub mod abi;
mod blocking;
mod connect;
mod error;
mod front;
mod geometry;
#[cfg(feature = "mock")]
pub mod mock;
#[cfg(feature = "embedded-sdmmc-v0-10")]
pub mod sdmmc;
mod slots;
mod ticket;

pub use connect::Config;
pub use error::{Error, Violation};
pub use front::{BlkFront, State, Stats};
pub use ticket::Ticket;
