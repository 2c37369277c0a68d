//! See `xen_fuzz::xenbus`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| xen_fuzz::xenbus::run(data));
