//! What differs between processors. Nothing outside names a register, an address or an interrupt number.
//!
//! Each architecture has the same items:
//! - `Call`, [`call`]: the way into Xen;
//! - `Clock`: what time it is; [`set_timer`], [`bind_timer`]: what ends a sleep in time;
//! - [`early`]: words to Xen's log;
//! - [`reach`]: the memory that the entry's tables lead to; [`seal`]: the page tables; [`map_special`]: a frame that is not RAM;
//! - [`room`]: the first of 4096 frames at which nothing is;
//! - [`enter`]: the first vCPU's first step; with feature `smp` also [`this`]: what the vCPU has for itself,
//!   [`is_up`] and [`start_vcpu`]: another vCPU;
//! - [`install`]: what becomes of faults and of the upcall; [`enable_upcall`]: Xen is told how to make it, and with feature
//!   `suspend` [`enable_upcall_again`] in a new domain, and [`suspend_by_firmware`];
//! - [`idle`], [`halt`]: the two ways to stop;
//! - [`selftest`]: breaks what the tables and the traps guard.
//!
//! Its entry calls [`machine::start`](crate::machine::start) with what it was told, on the boot stack, with interrupts off.

#[cfg(any(target_arch = "aarch64", test))]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(all(target_arch = "aarch64", not(test)))]
pub(crate) use aarch64::*;
#[cfg(all(target_arch = "x86_64", not(test)))]
pub(crate) use x86_64::*;
