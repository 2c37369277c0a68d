//! The rings on `io/ring.h`, which `c/rings.c` has.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::NonNull;

use crate::{BlkReq, BlkRsp, Ends, NetReq, NetRsp, Page};

macro_rules! ring {
    ($name:ident, $req:ty, $rsp:ty, $new:ident, $free:ident, $push:ident, $pop:ident, $back_pop:ident, $back_push:ident) => {
        unsafe extern "C" {
            fn $new(page: *mut c_void, start: c_uint, init: c_int) -> *mut c_void;
            fn $free(ring: *mut c_void);
            fn $push(ring: *mut c_void, requests: *const $req, n: c_uint, notify: *mut c_uint) -> c_uint;
            fn $pop(ring: *mut c_void, out: *mut $rsp, n: c_uint, more: *mut c_uint) -> c_int;
            fn $back_pop(ring: *mut c_void, out: *mut $req, n: c_uint, more: *mut c_uint) -> c_int;
            fn $back_push(
                ring: *mut c_void,
                responses: *const $rsp,
                n: c_uint,
                notify: *mut c_uint,
            ) -> c_uint;
        }

        /// Both ends of a ring.
        #[derive(Debug)]
        pub struct $name(NonNull<c_void>);

        impl $name {
            /// With `init` the page is made an empty ring, else it is one.
            ///
            /// # Safety
            /// The page outlives the ring, and while it is used it is accessed by nobody at the same time.
            pub unsafe fn new(page: NonNull<Page>, start: u32, init: bool) -> Self {
                // SAFETY: a page, as the caller promises.
                let ring = unsafe { $new(page.as_ptr().cast(), start, init.into()) };
                Self(NonNull::new(ring).expect("never null"))
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: made by `new`, and not used again.
                unsafe { $free(self.0.as_ptr()) };
            }
        }

        impl Ends<$req, $rsp> for $name {
            fn push(&mut self, requests: &[$req]) -> (u32, bool) {
                let (ring, n, mut notify) = (self.0.as_ptr(), requests.len() as u32, 0);
                // SAFETY: the ring of `new`; a slice has as many records as it says.
                let count = unsafe { $push(ring, requests.as_ptr(), n, &mut notify) };
                (count, notify != 0)
            }
            fn pop(&mut self, out: &mut [$rsp]) -> (u32, bool) {
                let (ring, n, mut more) = (self.0.as_ptr(), out.len() as u32, 0);
                // SAFETY: as in `push`.
                let count = unsafe { $pop(ring, out.as_mut_ptr(), n, &mut more) };
                (count.try_into().expect("the peer keeps to the protocol"), more != 0)
            }
            fn back_pop(&mut self, out: &mut [$req]) -> (u32, bool) {
                let (ring, n, mut more) = (self.0.as_ptr(), out.len() as u32, 0);
                // SAFETY: as in `push`.
                let count = unsafe { $back_pop(ring, out.as_mut_ptr(), n, &mut more) };
                (count.try_into().expect("the peer keeps to the protocol"), more != 0)
            }
            fn back_push(&mut self, responses: &[$rsp]) -> (u32, bool) {
                let (ring, n, mut notify) = (self.0.as_ptr(), responses.len() as u32, 0);
                // SAFETY: as in `push`.
                let count = unsafe { $back_push(ring, responses.as_ptr(), n, &mut notify) };
                (count, notify != 0)
            }
        }
    };
}

ring!(Net, NetReq, NetRsp, c_net_new, c_net_free, c_net_push, c_net_pop, c_net_back_pop, c_net_back_push);
ring!(Blk, BlkReq, BlkRsp, c_blk_new, c_blk_free, c_blk_push, c_blk_pop, c_blk_back_pop, c_blk_back_push);
