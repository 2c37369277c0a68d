//! See `xen_fuzz::evtchn_ops`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| xen_fuzz::evtchn_ops::run(data));
