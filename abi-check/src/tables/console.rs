//! xen-ring's layout of a console page, which xen-console uses.

use xen_ring::ConsoleLayout;

use crate::{List, consts, offsets};

pub(super) fn add(list: &mut List) {
    let indices = [["in_cons", "in_prod"], ["out_cons", "out_prod"]];
    super::store::streams::<ConsoleLayout>(list, "xencons_interface", ["in", "out"], indices);
    list.newer(|list| {
        offsets!(list, xencons_interface in ConsoleLayout { CONNECTION = "connection" });
        consts!(list, ConsoleLayout "XENCONSOLE_" { CONNECTED, DISCONNECTED });
    });
}
