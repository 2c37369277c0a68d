//! Xen paravirtual network device for guests (netfront)
#![no_std]
