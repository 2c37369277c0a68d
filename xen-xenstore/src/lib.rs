//! Xenstore client and xenbus device handshake for Xen guests
#![no_std]
