//! Typed Xen hypercalls and the platform traits a guest kernel implements
#![no_std]
