//! Xen event channels for guests: ports, two-level delivery, a waker per port
#![no_std]
