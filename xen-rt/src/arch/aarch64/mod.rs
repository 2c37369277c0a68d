//! Arm's 64 bits, started by Xen as Linux would be.
#![cfg_attr(not(test), allow(unsafe_code, reason = "is this processor's own"))]

#[cfg(not(test))]
mod boot;
#[cfg(not(test))]
mod gic;
#[cfg(not(test))]
mod machine;
#[cfg(not(test))]
mod paging;
#[cfg(all(any(feature = "smp", feature = "suspend"), not(test)))]
mod space;
#[cfg(all(feature = "suspend", not(test)))]
mod suspend;
mod tables;
#[cfg(not(test))]
mod time;
#[cfg(not(test))]
mod traps;
mod tree;
#[cfg(all(feature = "smp", not(test)))]
mod vcpus;

#[cfg(not(test))]
pub(crate) use machine::*;
#[cfg(all(feature = "suspend", not(test)))]
pub(crate) use suspend::suspend_by_firmware;
#[cfg(all(feature = "smp", not(test)))]
pub(crate) use vcpus::{is_up, start_vcpu, this};
#[cfg(not(test))]
pub(crate) use {
    paging::{map_special, reach, seal},
    time::{Clock, bind_timer, set_timer},
};

#[cfg(not(test))]
static MACHINE: crate::machine::Place<tree::Machine> = crate::machine::Place::new();
