#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

#[cfg(feature = "mock")]
extern crate std;

mod ask;
mod blocking;
mod client;
pub mod control;
mod error;
mod layout;
mod link;
#[cfg(feature = "mock")]
pub mod mock;
mod nodes;
mod page;
mod path;
mod question;
mod session;
pub mod shared;
pub mod suspend;
mod text;
mod transaction;
mod until;
mod watch;
mod watches;
pub mod way;
pub mod wire;
pub mod xenbus;

pub use blocking::Blocking;
pub use client::{ServerFeatures, Stats, Xenstore};
pub use error::{Error, Violation};
pub use nodes::{Together, names, parse};
pub use path::Path;
pub use question::{Changes, Question};
pub use transaction::Transaction;
pub use until::Until;
pub use watch::Watch;
