//! See `xen_fuzz::console`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| xen_fuzz::console::run(data));
