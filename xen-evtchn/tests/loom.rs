//! The scans, the unmasking, the masks and the owners of a port against a Xen that acts at any moment, on loom's model of memory.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p xen-evtchn --release --test loom`
#![cfg(loom)]

#[path = "loom/fifo.rs"]
mod fifo;
#[path = "loom/owners.rs"]
mod owners;
#[path = "loom/two_level.rs"]
mod two_level;
