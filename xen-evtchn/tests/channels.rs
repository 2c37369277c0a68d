//! What channels do, one behaviour at a time, with each ABI.
#![cfg(feature = "mock")]

mod two_level {
    const ABI: xen_evtchn::Abi = xen_evtchn::Abi::TwoLevel;
    const LIMIT: u32 = xen_evtchn::Port::LIMIT;
    include!("both/channels.rs");
}

mod fifo {
    const ABI: xen_evtchn::Abi = xen_evtchn::Abi::Fifo;
    const LIMIT: u32 = xen_evtchn::Port::FIFO_LIMIT;
    include!("both/channels.rs");
}
