//! A token that was given away makes no owner.
use xen_evtchn::EventChannels;
use xen_hypercall::{Domain, Platform};

fn early<P: Platform + Clone>(token: Domain<P>) {
    drop(token);
    let _ = EventChannels::new(&token);
}

fn main() {}
