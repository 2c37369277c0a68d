//! See `xen_fuzz::netfront`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| xen_fuzz::netfront::run(data));
