#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(feature = "mock")]
extern crate std;

pub mod abi;
pub mod arch;
mod areas;
pub mod assist;
#[cfg(feature = "alloc")]
mod boxed;
mod call;
mod clock;
pub mod console_io;
mod domain;
mod errno;
pub mod event;
pub mod grant;
pub mod hvm;
mod layout;
pub mod memory;
#[cfg(feature = "mock")]
pub mod mock;
pub mod multicall;
mod page_box;
pub mod physdev;
mod platform;
mod restore;
pub mod sched;
mod shared_info;
mod time;
mod types;
pub mod vcpu;
pub mod version;

pub use clock::{Clock, Monotonic};
pub use domain::{AtomicIncarnation, Claim, Domain, Incarnation, Part, SuspendError};
pub use errno::Errno;
pub use page_box::{PageArc, PageBox};
pub use platform::{GrantRoom, Hypercall, PageMemory, Platform, SpecialPages, Wait};
pub use restore::{Restore, RestoreError};
pub use shared_info::{SharedInfo, VcpuArea, VcpuInfo};
pub use time::VcpuTime;
pub use types::{DomId, Gfn, HypercallNr, PAGE_SIZE, Page, VcpuId};
