#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

#[cfg(feature = "mock")]
extern crate std;

pub mod abi;
pub mod adapters;
mod card;
mod config;
mod connect;
mod control;
mod error;
mod followup;
mod front;
pub mod hash;
mod layout;
mod lent;
mod lifecycle;
mod link;
mod mac;
mod meta;
#[cfg(feature = "mock")]
pub mod mock;
mod multicast;
pub mod packet;
mod pages;
mod pool;
mod queue;
mod resume;
mod rx;
mod segment;
#[cfg(any(feature = "embassy-net-driver-v0-2", feature = "smoltcp-v0-13", feature = "smoltcp-v0-14"))]
mod staged;
mod stats;
mod terms;
mod tx;
mod waiters;
mod wake;
mod way;

pub use card::{Card, Controller};
pub use config::{Config, Features};
pub use connect::Connecting;
pub use control::ControlRing;
pub use error::{Error, Violation};
pub use followup::Followup;
pub use front::{NetFront, State};
pub use hash::Hash;
pub use lent::NetQueue;
pub use mac::Mac;
pub use meta::{Checksum, Gso, GsoKind, RxMeta, TxMeta};
pub use multicast::{GROUPS, Multicast};
pub use pages::FramePage;
pub use stats::Stats;

/// The longest frame, in bytes, without its checksum (`XEN_NETIF_MAX_TX_SIZE`).
pub const FRAME_MAX: usize = abi::MAX_TX_SIZE;
