#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

pub mod abi;
mod blocking;
mod connect;
mod error;
mod front;
mod geometry;
mod slots;
mod ticket;

pub use connect::Config;
pub use error::{Error, Violation};
pub use front::{BlkFront, State, Stats};
pub use ticket::Ticket;
