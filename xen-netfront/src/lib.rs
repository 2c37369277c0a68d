#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "mock")]
extern crate std;

pub mod abi;
pub mod adapters;
mod connect;
mod error;
mod front;
mod mac;
mod meta;
#[cfg(feature = "mock")]
pub mod mock;
pub mod packet;
mod pool;
mod stats;

pub use error::{Error, Violation};
pub use front::{NetFront, State};
pub use mac::Mac;
pub use meta::{Checksum, Gso, GsoKind};
pub use stats::Stats;

/// The longest frame, in bytes, without its checksum: what fits the one page that a slot of the ring names.
pub const FRAME_MAX: usize = xen_hypercall::PAGE_SIZE;
