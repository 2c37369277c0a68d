//! See `xen_fuzz::byte_ring`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| xen_fuzz::byte_ring::run(data));
