//! A further console's handshake, for who blocks and for tasks: see `xen_xenstore::way`.
#![allow(
    clippy::duplicate_mod,
    clippy::manual_async_fn,
    reason = "a conversation is compiled for either way"
)]

pub(crate) mod blocking;
pub(crate) mod tasks;
