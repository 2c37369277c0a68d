//! What the compiler checks of the types here: where the fields of records are (`io/netif.h`), and what may cross threads.

use core::mem::offset_of;
use static_assertions::{assert_impl_all, const_assert_eq};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::*;
use crate::{Error, Stats};

/// A type's size, and where each field is, in bytes.
macro_rules! layout {
    ($($type:path = $size:literal { $($field:ident at $offset:literal),* $(,)? })*) => {$(
        const_assert_eq!(size_of::<$type>(), $size);
        $(const_assert_eq!(offset_of!($type, $field), $offset);)*
    )*};
}

layout! {
    TxRequest = 12 { gref at 0, offset at 4, flags at 6, id at 8, size at 10 }
    TxResponse = 4 { id at 0, status at 2 }
    RxRequest = 8 { id at 0, gref at 4 }
    RxResponse = 8 { id at 0, offset at 2, flags at 4, status at 6 }
    ExtraInfo = 8 { kind at 0, flags at 1, data at 2 }
    TxExtra = 12 { info at 0 }
    CtrlRequest = 16 { id at 0, kind at 2, data at 4 }
    CtrlResponse = 12 { id at 0, kind at 2, status at 4, data at 8 }
    GrefEntry = 8 { gref at 0, flags at 4, status at 6 }
}

/// Records that travel in a ring: any bytes are one, and none of its bytes is undefined.
macro_rules! records {
    ($($type:path),* $(,)?) => {
        $(assert_impl_all!($type: FromBytes, IntoBytes, Immutable, KnownLayout, Send, Sync, Copy);)*
    };
}

records!(
    TxRequest,
    TxResponse,
    RxRequest,
    RxResponse,
    ExtraInfo,
    TxExtra,
    CtrlRequest,
    CtrlResponse,
    GrefEntry
);

assert_impl_all!(Stats: Send, Sync, Copy);
assert_impl_all!(Error: Send, Sync, Copy, core::error::Error);

#[cfg(feature = "mock")]
mod with_a_platform {
    use static_assertions::{assert_impl_all, assert_not_impl_any};
    use xen_hypercall::mock::MockDomain;

    use crate::mock::{MockNetback, MockSwitch};
    use crate::{FramePage, NetFront, NetQueue};

    // There is one of it, and it goes where it is needed.
    assert_impl_all!(NetFront<'static, MockDomain>: Send);
    assert_not_impl_any!(NetFront<'static, MockDomain>: Clone, Copy);
    assert_impl_all!(NetQueue<'static, MockDomain>: Send);
    assert_not_impl_any!(NetQueue<'static, MockDomain>: Clone, Copy);
    assert_impl_all!(FramePage<'static, MockDomain>: Send);
    assert_impl_all!(MockNetback: Send, Sync);
    assert_impl_all!(MockSwitch: Send, Sync, Clone);
}
