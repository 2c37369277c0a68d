//! Where Xen tells a vCPU of its events is borrowed from the token, as `shared_info` is.
use xen_hypercall::{DomId, VcpuId, mock::MockXen};

fn main() {
    let area = {
        let xen = MockXen::new();
        let token = xen.domain(DomId(1)).boot().unwrap();
        token.area(VcpuId(0)).unwrap()
    };
    let _ = area.info();
}
