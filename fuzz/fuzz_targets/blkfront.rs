//! See `xen_fuzz::blkfront`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| xen_fuzz::blkfront::run(data));
