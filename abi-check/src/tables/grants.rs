//! xen-gnttab.

use xen_gnttab::{EntryV1, EntryV2, GrantFlags, GrantRef, GrantStatus};

use crate::{List, consts, numbers, scalars, types};

pub(super) fn add(list: &mut List) {
    scalars!(list, { GrantRef = grant_ref_t });
    numbers!(list, { "GNTTAB_NR_RESERVED_ENTRIES" = GrantRef::RESERVED });
    consts!(list, GrantRef "GNTTAB_RESERVED_" [.0] { CONSOLE, XENSTORE });
    consts!(list, GrantFlags "GTF_" [.bits()] {
        PERMIT_ACCESS, ACCEPT_TRANSFER, READONLY, READING, WRITING, TYPE = "GTF_type_mask", SUB_PAGE, TRANSITIVE,
    });
    consts!(list, GrantStatus "GNTST_" [.0] {
        OKAY, GENERAL_ERROR, BAD_DOMAIN, BAD_GNTREF, BAD_HANDLE, BAD_VIRT_ADDR, BAD_DEV_ADDR, NO_DEVICE_SPACE,
        PERMISSION_DENIED, BAD_PAGE, BAD_COPY_ARG, ADDRESS_TOO_BIG, EAGAIN, NO_SPACE,
    });
    types!(list, {
        EntryV1 = grant_entry_v1 { flags, domid, frame }
        EntryV2 = grant_entry_v2 {
            flags: ["hdr.flags", "full_page.hdr.flags", "sub_page.hdr.flags", "transitive.hdr.flags"],
            domid: ["hdr.domid", "full_page.hdr.domid", "sub_page.hdr.domid", "transitive.hdr.domid"],
            offset_or_domain: ["sub_page.page_off", "transitive.trans_domid"],
            length: "sub_page.length",
            frame_or_gref: ["full_page.frame", "sub_page.frame"],
        }
    });
}
