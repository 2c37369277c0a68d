#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

#[cfg(feature = "mock")]
extern crate std;

mod back;
mod copy;
mod error;
mod front;
#[cfg(any(test, not(all(target_arch = "x86_64", not(miri)))))]
mod generic;
mod header;
mod layout;
mod mem;
#[cfg(feature = "mock")]
pub mod mock;
mod responses;
mod stream;
mod whole;
pub mod word;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86_64;

pub use back::Back;
pub use error::{RingError, Violation};
pub use front::Front;
pub use header::{HEADER_SIZE, Protocol, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, slots_in};
pub use mem::{Backing, OutOfRange, SharedMem};
pub use responses::Responses;
pub use stream::{ByteRing, ConsoleLayout, Reversed, StreamLayout, XenstoreLayout};
