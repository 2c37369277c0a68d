//! `shared_info` is borrowed from the token, and cannot be used when the domain is gone.
use xen_hypercall::{DomId, VcpuId, mock::MockXen};

fn main() {
    let shared = {
        let xen = MockXen::new();
        let token = xen.domain(DomId(1)).boot().unwrap();
        token.shared_info()
    };
    let _ = shared.time(VcpuId(0));
}
