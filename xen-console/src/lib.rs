//! Xen PV console for guests: the shared ring, and early and emergency output
#![no_std]
