//! xen-ring's layout of a console page, which xen-console uses.

use xen_ring::ConsoleLayout;

use crate::{Is, List};

pub(super) fn add(list: &mut List) {
    super::store::streams::<ConsoleLayout>(
        list,
        "xencons_interface",
        ["in", "out"],
        [["in_cons", "in_prod"], ["out_cons", "out_prod"]],
    );
    list.push(
        "bytes of ConsoleLayout",
        "xencons_interface",
        Is::Type { size: 3088, align: align_of::<u32>() },
    );
}
