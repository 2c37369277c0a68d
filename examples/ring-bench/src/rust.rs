//! The rings on `xen-ring`.

use std::ptr::NonNull;

use xen_ring::{Back, Backing, Front, Protocol, SharedMem};

use crate::{BlkReq, BlkRsp, Ends, NetReq, NetRsp, Page};

#[derive(Debug)]
pub struct Net;
impl Protocol for Net {
    type Request = NetReq;
    type Response = NetRsp;
}

#[derive(Debug)]
pub struct Blk;
impl Protocol for Blk {
    type Request = BlkReq;
    type Response = BlkRsp;
}

/// A page by its address, as a driver has it that was granted or has mapped it.
#[derive(Debug)]
pub struct Shared(NonNull<Page>);

impl Backing for Shared {
    #[inline]
    fn mem(&mut self) -> SharedMem<'_> {
        // SAFETY: a page that outlives the rings, which are used by one thread (`new`).
        unsafe { SharedMem::of(self.0) }
    }

    #[inline]
    fn fixed_len(&self) -> Option<usize> {
        Some(size_of::<Page>())
    }
}

macro_rules! ends {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name<P> {
            pub front: Front<P, Shared>,
            pub back: Back<P, Shared>,
        }

        impl<P: Protocol> $name<P> {
            /// # Safety
            /// The page outlives the rings.
            pub unsafe fn new(page: NonNull<Page>, start: u32) -> Self {
                Self {
                    front: Front::init_at(Shared(page), start).expect("a page is large enough"),
                    back: Back::attach_at(Shared(page), start).expect("a page is large enough"),
                }
            }
        }
    };
}

ends! {
    /// Both ends of a ring, used slot by slot.
    Rings
}
ends! {
    /// Both ends of a ring, used batch by batch.
    Batches
}

/// `RING_FINAL_CHECK_FOR_*`, which leaves the event index alone while there is something.
macro_rules! final_check {
    ($end:ident, $has:ident) => {
        $end.$has()
            .and_then(|more| if more { Ok(true) } else { $end.arm() })
            .expect("the peer keeps to the protocol")
    };
}

macro_rules! functions {
    ($protocol:ty, $req:ty, $rsp:ty, $one:tt, $batch:tt) => {
        functions!(@one $protocol, $req, $rsp, $one);
        functions!(@batch $protocol, $req, $rsp, $batch);
    };
    (@one $protocol:ty, $req:ty, $rsp:ty, [$push:ident, $pop:ident, $back_pop:ident, $back_push:ident]) => {
        /// The functions have names, and are not inlined, so that their instructions can be told from others.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub fn $push(front: &mut Front<$protocol, Shared>, requests: &[$req]) -> (u32, bool) {
            let mut count = 0;
            for request in requests {
                if front.push(request).is_err() {
                    break;
                }
                count += 1;
            }
            (count, front.publish().expect("the peer keeps to the protocol"))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub fn $pop(front: &mut Front<$protocol, Shared>, out: &mut [$rsp]) -> (u32, bool) {
            let mut count = 0;
            let responses = front.responses().expect("the peer keeps to the protocol");
            for (place, response) in out.iter_mut().zip(responses) {
                *place = response;
                count += 1;
            }
            (count, final_check!(front, has_responses))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub fn $back_pop(back: &mut Back<$protocol, Shared>, out: &mut [$req]) -> (u32, bool) {
            let mut count = 0;
            for place in out {
                if !back.pop_into(place).expect("the peer keeps to the protocol") {
                    break;
                }
                count += 1;
            }
            (count, final_check!(back, has_requests))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub fn $back_push(back: &mut Back<$protocol, Shared>, responses: &[$rsp]) -> (u32, bool) {
            let mut count = 0;
            for response in responses {
                if back.push(response).is_err() {
                    break;
                }
                count += 1;
            }
            (count, back.publish().expect("the peer keeps to the protocol"))
        }

        functions!(@ends Rings, $protocol, $req, $rsp, $push, $pop, $back_pop, $back_push);
    };
    (@batch $protocol:ty, $req:ty, $rsp:ty, [$push:ident, $pop:ident, $back_pop:ident, $back_push:ident]) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub fn $push(front: &mut Front<$protocol, Shared>, requests: &[$req]) -> (u32, bool) {
            let count = front.push_batch(requests).expect("the peer keeps to the protocol");
            (count, front.publish().expect("the peer keeps to the protocol"))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub fn $pop(front: &mut Front<$protocol, Shared>, out: &mut [$rsp]) -> (u32, bool) {
            let count = front.pop_batch(out).expect("the peer keeps to the protocol");
            (count, final_check!(front, has_responses))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub fn $back_pop(back: &mut Back<$protocol, Shared>, out: &mut [$req]) -> (u32, bool) {
            let count = back.pop_batch(out).expect("the peer keeps to the protocol");
            (count, final_check!(back, has_requests))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub fn $back_push(back: &mut Back<$protocol, Shared>, responses: &[$rsp]) -> (u32, bool) {
            let count = back.push_batch(responses).expect("the peer keeps to the protocol");
            (count, back.publish().expect("the peer keeps to the protocol"))
        }

        functions!(@ends Batches, $protocol, $req, $rsp, $push, $pop, $back_pop, $back_push);
    };
    (@ends $ends:ident, $protocol:ty, $req:ty, $rsp:ty, $push:ident, $pop:ident, $back_pop:ident, $back_push:ident) => {
        impl Ends<$req, $rsp> for $ends<$protocol> {
            fn push(&mut self, requests: &[$req]) -> (u32, bool) {
                $push(&mut self.front, requests)
            }
            fn pop(&mut self, out: &mut [$rsp]) -> (u32, bool) {
                $pop(&mut self.front, out)
            }
            fn back_pop(&mut self, out: &mut [$req]) -> (u32, bool) {
                $back_pop(&mut self.back, out)
            }
            fn back_push(&mut self, responses: &[$rsp]) -> (u32, bool) {
                $back_push(&mut self.back, responses)
            }
        }
    };
}

functions!(
    Net,
    NetReq,
    NetRsp,
    [rust_net_push, rust_net_pop, rust_net_back_pop, rust_net_back_push],
    [batch_net_push, batch_net_pop, batch_net_back_pop, batch_net_back_push]
);
functions!(
    Blk,
    BlkReq,
    BlkRsp,
    [rust_blk_push, rust_blk_pop, rust_blk_back_pop, rust_blk_back_push],
    [batch_blk_push, batch_blk_pop, batch_blk_back_pop, batch_blk_back_push]
);
