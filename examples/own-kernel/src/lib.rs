#![doc = include_str!("../../../docs/testing.md")]
#![no_std]
#![deny(unsafe_code)]

mod abi;
mod frames;
mod heart;
mod kernel;
#[cfg(target_arch = "x86_64")]
mod metal;
mod page;

pub use abi::{Beat, Heartbeat, LATEST, Reply, SOONEST};
pub use frames::Frames;
pub use heart::{Error, Heart, PATIENCE};
pub use kernel::Kernel;
#[cfg(target_arch = "x86_64")]
pub use metal::{OnXen, Sleep};
pub use page::SharedPage;
