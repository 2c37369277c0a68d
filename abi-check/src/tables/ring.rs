//! xen-ring: the header of every ring (`DEFINE_RING_TYPES` of `io/ring.h`), and how many slots fit a page.

use xen_ring::{HEADER_SIZE, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD};

use crate::{Is, List};

pub(super) fn add(list: &mut List) {
    // The headers make the type anew for each device, always the same.
    for ring in ["blkif_sring", "netif_tx_sring", "netif_rx_sring"] {
        let words = [
            ("req_prod", REQ_PROD),
            ("req_event", REQ_EVENT),
            ("rsp_prod", RSP_PROD),
            ("rsp_event", RSP_EVENT),
        ];
        for (path, offset) in words {
            let size = Some(size_of::<u32>());
            list.push(format!("xen-ring's {path}"), ring, Is::Field { path: path.to_owned(), offset, size });
        }
        let slots = Is::Field { path: "ring".to_owned(), offset: HEADER_SIZE, size: None };
        list.push("HEADER_SIZE", ring, slots);
    }
}
