//! See `xen_fuzz::gnttab_ops`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| xen_fuzz::gnttab_ops::run(data));
