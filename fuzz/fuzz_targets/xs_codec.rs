//! See `xen_fuzz::xs_codec`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| xen_fuzz::xs_codec::run(data));
