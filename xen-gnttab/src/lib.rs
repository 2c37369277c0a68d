#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

#[cfg(feature = "mock")]
extern crate std;

mod abi;
mod batch;
mod copy;
#[cfg(not(loom))]
mod entry;
#[cfg(loom)]
#[doc(hidden)]
pub mod entry;
mod error;
mod frames;
#[cfg(not(loom))]
mod free_list;
#[cfg(loom)]
#[doc(hidden)]
pub mod free_list;
mod granted;
#[cfg(not(loom))]
mod growth;
#[cfg(loom)]
#[doc(hidden)]
pub mod growth;
mod layout;
mod mapped;
#[cfg(not(loom))]
mod marks;
#[cfg(loom)]
#[doc(hidden)]
pub mod marks;
#[cfg(feature = "mock")]
pub mod mock;
mod page;
mod pages;
mod quarantine;
mod references;
mod restore;
mod slot;
mod status;
mod table;
mod version;
mod xen;

pub use abi::{Access, GrantFlags, GrantRef};
pub use copy::{CopyBatch, CopyDest, CopySource};
#[doc(hidden)]
pub use entry::{v1::Entry as EntryV1, v2::Entry as EntryV2};
pub use error::Error;
pub use granted::{Ended, GrantedPage, LentPage};
pub use mapped::{MappedForReading, MappedGrants};
pub use page::OwnedPage;
pub use pages::{EndedPages, GrantedPages, OwnedPages};
pub use references::{Reference, Waiter};
pub use status::GrantStatus;
pub use table::{GrantTable, Rejected, Stats};
pub use version::{TransitiveGrant, Version};
