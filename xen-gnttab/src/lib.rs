//! Xen grant tables for guests: granted pages that own themselves, with quarantine while a peer holds on
#![no_std]
