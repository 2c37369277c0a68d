//! What the compiler checks of the types here: where things stand in shared pages, as Xen's headers declare them.
#![allow(dead_code, reason = "structures declared for their layout alone")]

use core::mem::offset_of;
use static_assertions::{const_assert, const_assert_eq};

use crate::{
    ConsoleLayout, HEADER_SIZE, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, StreamLayout, XenstoreLayout,
};

/// `struct x_sring` of `io/ring.h`, up to the slots.
#[repr(C)]
struct SharedRing {
    req_prod: u32,
    req_event: u32,
    rsp_prod: u32,
    rsp_event: u32,
    pvt: [u8; 4],
    pad: [u8; 44],
}

const_assert_eq!(size_of::<SharedRing>(), HEADER_SIZE);
const_assert_eq!(offset_of!(SharedRing, req_prod), REQ_PROD);
const_assert_eq!(offset_of!(SharedRing, req_event), REQ_EVENT);
const_assert_eq!(offset_of!(SharedRing, rsp_prod), RSP_PROD);
const_assert_eq!(offset_of!(SharedRing, rsp_event), RSP_EVENT);

/// `struct xencons_interface` of `io/console.h`.
#[repr(C)]
struct ConsolePage {
    input: [u8; 1024],
    output: [u8; 2048],
    in_cons: u32,
    in_prod: u32,
    out_cons: u32,
    out_prod: u32,
    connection: u32,
}

/// `struct xenstore_domain_interface` of `io/xs_wire.h`.
#[repr(C)]
struct StorePage {
    req: [u8; 1024],
    rsp: [u8; 1024],
    req_cons: u32,
    req_prod: u32,
    rsp_cons: u32,
    rsp_prod: u32,
    server_features: u32,
    connection: u32,
    error: u32,
}

/// A stream's bytes and its two indices.
macro_rules! stream {
    ($layout:ty: $area:ident, $indices:ident in $page:ident: $bytes:ident, $cons:ident, $prod:ident) => {
        const_assert_eq!(offset_of!($page, $bytes), <$layout>::$area.0);
        const_assert_eq!(offset_of!($page, $cons), <$layout>::$indices.0);
        const_assert_eq!(offset_of!($page, $prod), <$layout>::$indices.1);
        const_assert!(<$layout>::$area.1.is_power_of_two());
        const_assert!(<$layout>::$area.0 + <$layout>::$area.1 as usize <= <$layout>::$indices.0);
    };
}

stream!(ConsoleLayout: IN, IN_INDICES in ConsolePage: input, in_cons, in_prod);
stream!(ConsoleLayout: OUT, OUT_INDICES in ConsolePage: output, out_cons, out_prod);
const_assert_eq!(offset_of!(ConsolePage, connection), ConsoleLayout::CONNECTION);
stream!(XenstoreLayout: OUT, OUT_INDICES in StorePage: req, req_cons, req_prod);
stream!(XenstoreLayout: IN, IN_INDICES in StorePage: rsp, rsp_cons, rsp_prod);
const_assert_eq!(offset_of!(StorePage, server_features), XenstoreLayout::SERVER_FEATURES);
const_assert_eq!(offset_of!(StorePage, connection), XenstoreLayout::CONNECTION);
const_assert_eq!(offset_of!(StorePage, error), XenstoreLayout::ERROR);
