//! What is mapped is gone after a suspend, so its caller has to promise that nothing of that is in use.
use xen_hypercall::{Hypercall, Platform, sched};

fn raw<P: Platform>(xen: &P) {
    let _ = sched::suspend(xen);
}

fn by_number(xen: &impl Hypercall) {
    let _ = sched::shutdown(xen, sched::ShutdownCode::SUSPEND);
}

fn main() {}
