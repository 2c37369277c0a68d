//! xen-xenstore, and xen-ring's layout of its page.

use xen_ring::{StreamLayout, XenstoreLayout};
use xen_xenstore::wire::{self, Header, Operation};
use xen_xenstore::xenbus::XenbusState;

use crate::{Is, List, consts, numbers, offsets, scalars, types};

pub(super) fn add(list: &mut List) {
    types!(list, {
        Header = xsd_sockmsg { kind: "type", request_id: "req_id", transaction_id: "tx_id", len }
    });
    numbers!(list, {
        "XENSTORE_PAYLOAD_MAX" = wire::PAYLOAD_MAX,
        "XENSTORE_ABS_PATH_MAX" = wire::ABS_PATH_MAX,
        "XENSTORE_REL_PATH_MAX" = wire::REL_PATH_MAX,
        "XENSTORE_RING_SIZE" = XenstoreLayout::OUT.1,
    });
    scalars!(list, { Operation = xsd_sockmsg_type });
    consts!(list, Operation "XS_" [.0] {
        CONTROL, DIRECTORY, READ, GET_PERMS, WATCH, UNWATCH, TRANSACTION_START, TRANSACTION_END, INTRODUCE, RELEASE,
        GET_DOMAIN_PATH, WRITE, MKDIR, RM, SET_PERMS, WATCH_EVENT, ERROR, IS_DOMAIN_INTRODUCED, RESUME, SET_TARGET,
        RESET_WATCHES, DIRECTORY_PART,
    });
    // Only newer headers have these.
    list.newer(|list| {
        consts!(list, Operation "XS_" [.0] { GET_FEATURE, SET_FEATURE, GET_QUOTA, SET_QUOTA });
    });
    scalars!(list, { XenbusState = xenbus_state });
    consts!(list, XenbusState "XenbusState" [.0] {
        UNKNOWN, INITIALISING, INIT_WAIT = "XenbusStateInitWait", INITIALISED, CONNECTED, CLOSING, CLOSED,
        RECONFIGURING, RECONFIGURED,
    });
    streams::<XenstoreLayout>(
        list,
        "xenstore_domain_interface",
        ["rsp", "req"],
        [["rsp_cons", "rsp_prod"], ["req_cons", "req_prod"]],
    );
    offsets!(list, xenstore_domain_interface in XenstoreLayout {
        SERVER_FEATURES = "server_features", CONNECTION = "connection", ERROR = "error",
    });
}

/// The streams of a page, read and written, and their indices.
pub(super) fn streams<L: StreamLayout>(
    list: &mut List,
    theirs: &'static str,
    [read, written]: [&str; 2],
    [read_indices, written_indices]: [[&str; 2]; 2],
) {
    let mut place = |path: &str, offset, size: u32| {
        let is = Is::Field { path: path.to_owned(), offset, size: Some(size as usize) };
        list.push(format!("xen-ring's {path}"), theirs, is);
    };
    place(read, L::IN.0, L::IN.1);
    place(written, L::OUT.0, L::OUT.1);
    for (path, offset) in read_indices.into_iter().zip([L::IN_INDICES.0, L::IN_INDICES.1]) {
        place(path, offset, 4);
    }
    for (path, offset) in written_indices.into_iter().zip([L::OUT_INDICES.0, L::OUT_INDICES.1]) {
        place(path, offset, 4);
    }
}
