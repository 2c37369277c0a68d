//! x86-64, started by Xen as a PVH guest.
#![allow(unsafe_code, reason = "is this processor's own")]

#[cfg(not(test))]
mod boot;
#[cfg(not(test))]
mod machine;
#[cfg(not(test))]
mod paging;
mod tables;
#[cfg(not(test))]
mod traps;
#[cfg(all(feature = "smp", not(test)))]
mod vcpus;

#[cfg(not(test))]
pub(crate) use machine::*;
#[cfg(not(test))]
pub(crate) use paging::{map_special, reach, seal};
#[cfg(all(feature = "smp", not(test)))]
pub(crate) use {
    vcpus::{start_vcpu, this},
    xen_hypercall::vcpu::is_up,
};
