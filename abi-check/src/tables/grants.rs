//! xen-gnttab.

use xen_gnttab::{GrantFlags, GrantRef, GrantStatus};

use crate::{List, consts, numbers, scalars};

pub(super) fn add(list: &mut List) {
    scalars!(list, { GrantRef = grant_ref_t });
    numbers!(list, { "GNTTAB_NR_RESERVED_ENTRIES" = GrantRef::RESERVED });
    consts!(list, GrantRef "GNTTAB_RESERVED_" [.0] { CONSOLE, XENSTORE });
    consts!(list, GrantFlags "GTF_" [.bits()] {
        PERMIT_ACCESS, ACCEPT_TRANSFER, READONLY, READING, WRITING, TYPE = "GTF_type_mask",
    });
    consts!(list, GrantStatus "GNTST_" [.0] {
        OKAY, GENERAL_ERROR, BAD_DOMAIN, BAD_GNTREF, BAD_HANDLE, BAD_VIRT_ADDR, BAD_DEV_ADDR, NO_DEVICE_SPACE,
        PERMISSION_DENIED, BAD_PAGE, BAD_COPY_ARG, ADDRESS_TOO_BIG, EAGAIN, NO_SPACE,
    });
}
