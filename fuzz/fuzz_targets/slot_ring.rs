//! See `xen_fuzz::slot_ring`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| xen_fuzz::slot_ring::run(data));
