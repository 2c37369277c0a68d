//! Structures and numbers of the hypercalls, as Xen's public headers define them, a module per header.
//!
//! Names follow the headers: `struct evtchn_send` is [`EvtchnSend`], `SCHEDOP_block` is [`SCHEDOP_BLOCK`]. Fields
//! named `pad*` are holes that the C compiler leaves, made explicit so that no byte is ever undefined. All is of 64-bit
//! guests, whose layouts are the same on x86-64 and arm64 except where [`shared_info`] says so.
#![allow(missing_docs, reason = "the headers named with each module define these")]
#![allow(missing_debug_implementations, reason = "zerocopy's derives make helper types without it")]

macro_rules! wire {
    ($($name:ident = $size:literal { $($field:ident: $type:ty,)* })*) => {$(
        #[doc = concat!("`", stringify!($name), "` of the headers, ", stringify!($size), " bytes.")]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
        #[repr(C)]
        pub struct $name { $(pub $field: $type,)* }
        static_assertions::const_assert_eq!(size_of::<$name>(), $size);
        static_assertions::assert_impl_all!($name: Send, Sync);
    )*};
}

mod event_channel;
mod grant_table;
mod hvm;
mod memory;
mod physdev;
mod sched;
pub mod shared_info;
mod vcpu;
mod version;
mod xen;

pub use event_channel::*;
pub use grant_table::*;
pub use hvm::*;
pub use memory::*;
pub use physdev::*;
pub use sched::*;
pub use vcpu::*;
pub use version::*;
pub use xen::*;
