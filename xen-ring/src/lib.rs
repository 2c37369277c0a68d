//! Xen shared rings: the slot ring of io/ring.h and the byte ring of console and xenstore, from both ends
#![no_std]
