//! Xen paravirtual block device for guests (blkfront)
#![no_std]
