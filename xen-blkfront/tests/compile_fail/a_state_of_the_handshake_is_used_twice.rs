//! Each step of a handshake takes the state before it.
use core::time::Duration;

use xen_hypercall::{Platform, Wait};
use xen_xenstore::Xenstore;
use xen_xenstore::xenbus::{Frontend, Initialising};

fn stale<P: Platform + Wait>(xs: &mut Xenstore<'_, P>, device: Frontend<Initialising>) {
    let _ready = device.wait_for_backend(xs, Duration::MAX);
    let _ = device.wait_for_backend(xs, Duration::MAX);
}

fn main() {}
