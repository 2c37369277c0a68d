//! The parts of the project's commands. `main.rs` holds only the command line.
//!
//! The test bed is real Xen inside QEMU: [`deb`] fetches its programs, [`initramfs`] packs them for dom0, [`qemu`]
//! runs the machine and [`dom0`] is what a test uses.

pub mod abi;
mod apt;
mod bare;
pub mod bed;
pub mod bench;
pub mod check;
pub mod deb;
pub mod dom0;
pub mod e2e;
mod elf;
pub mod fat;
pub mod fuzz;
pub mod guest;
mod hello;
pub(crate) mod host;
pub mod image;
pub mod initramfs;
mod libraries;
pub mod modules;
pub mod new;
pub mod platform;
pub mod qemu;
pub mod run;
pub mod size;
pub mod tally;
mod toolchain;
pub mod web;
mod xen_log;
