//! What the compiler checks of the types here: where the fields of records are (`io/blkif.h`), and what may cross threads.

use core::mem::offset_of;
use static_assertions::{assert_impl_all, const_assert_eq};
use xen_ring::slots_in;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::*;
use crate::{Error, Stats, Ticket};

/// A type's size, and where each field is, in bytes.
macro_rules! layout {
    ($($type:path = $size:literal { $($field:ident at $offset:literal),* $(,)? })*) => {$(
        const_assert_eq!(size_of::<$type>(), $size);
        $(const_assert_eq!(offset_of!($type, $field), $offset);)*
    )*};
}

layout! {
    Segment = 8 { gref at 0, first at 4, last at 5 }
    Request = 112 { operation at 0, segments at 1, handle at 2, id at 8, sector at 16, segment at 24 }
    RequestDiscard = 32 { operation at 0, flag at 1, handle at 2, id at 8, sector at 16, sectors at 24 }
    RequestIndirect = 64 {
        operation at 0, indirect_op at 1, segments at 2, id at 8, sector at 16, handle at 24, grefs at 28,
    }
    Response = 16 { id at 0, operation at 8, status at 10 }
}
const_assert_eq!(slots_in::<Blkif>(4096), RING_SLOTS as u32);

/// Records that travel in a ring: any bytes are one, and none of its bytes is undefined.
macro_rules! records {
    ($($type:path),* $(,)?) => {
        $(assert_impl_all!($type: FromBytes, IntoBytes, Immutable, KnownLayout, Send, Sync, Copy);)*
    };
}

records!(Segment, Request, RequestDiscard, RequestIndirect, Response);

assert_impl_all!(Ticket: Send, Sync, Copy);
assert_impl_all!(Stats: Send, Sync, Copy);
assert_impl_all!(Error: Send, Sync, Copy, core::error::Error);

#[cfg(feature = "mock")]
mod with_a_platform {
    use static_assertions::{assert_impl_all, assert_not_impl_any};
    use xen_hypercall::mock::MockDomain;

    use crate::mock::MockBlkback;
    use crate::{BlkFront, BlkQueue};

    // There is one of it, and it goes where it is needed.
    assert_impl_all!(BlkFront<'static, MockDomain>: Send);
    assert_not_impl_any!(BlkFront<'static, MockDomain>: Clone, Copy);
    assert_impl_all!(BlkQueue<'static, MockDomain>: Send);
    assert_not_impl_any!(BlkQueue<'static, MockDomain>: Clone, Copy);
    assert_impl_all!(MockBlkback: Send, Sync);
}
