//! See `xen_fuzz::xs_session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| xen_fuzz::xs_session::run(data));
