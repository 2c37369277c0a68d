//! Only a connected device has an end to be told of.
use xen_hypercall::{Platform, Wait};
use xen_xenstore::Xenstore;
use xen_xenstore::xenbus::{BackendReady, Frontend};

fn early<P: Platform + Wait>(xs: &mut Xenstore<'_, P>, device: Frontend<BackendReady>) {
    let _ = device.change(xs);
}

fn main() {}
