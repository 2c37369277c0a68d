//! What the compiler checks of the types here: where the fields of entries are, and what may cross threads or be copied.

use core::mem::offset_of;
use static_assertions::{assert_impl_all, const_assert_eq};

use crate::entry::{v1, v2};
use crate::{Access, Error, GrantRef, GrantStatus};

const_assert_eq!(size_of::<v1::Entry>(), 8);
const_assert_eq!(offset_of!(v1::Entry, flags), 0);
const_assert_eq!(offset_of!(v1::Entry, domid), 2);
const_assert_eq!(offset_of!(v1::Entry, frame), 4);
const_assert_eq!(v1::PER_FRAME, 512);

const_assert_eq!(size_of::<v2::Entry>(), 16);
const_assert_eq!(offset_of!(v2::Entry, flags), 0);
const_assert_eq!(offset_of!(v2::Entry, domid), 2);
const_assert_eq!(offset_of!(v2::Entry, offset_or_domain), 4);
const_assert_eq!(offset_of!(v2::Entry, length), 6);
const_assert_eq!(offset_of!(v2::Entry, frame_or_gref), 8);
const_assert_eq!(v2::PER_FRAME, 256);
const_assert_eq!(v2::STATUS_PER_FRAME, 2048);

const_assert_eq!(size_of::<GrantRef>(), 4);
assert_impl_all!(GrantRef: Send, Sync, Copy);
assert_impl_all!(Access: Send, Sync, Copy);
assert_impl_all!(GrantStatus: Send, Sync, Copy);
assert_impl_all!(Error: Send, Sync, Copy, core::error::Error);

#[cfg(feature = "mock")]
mod with_a_platform {
    use static_assertions::{assert_impl_all, assert_not_impl_any};
    use xen_hypercall::mock::MockDomain;

    use crate::{
        GrantTable, GrantedPage, GrantedPages, LentPage, MappedForReading, MappedGrants, OwnedPage,
        OwnedPages, Reference, TransitiveGrant,
    };

    // Grants are linear: each ends once, wherever it went.
    macro_rules! linear {
        ($($type:ty,)*) => {$(
            assert_impl_all!($type: Send, Sync);
            assert_not_impl_any!($type: Clone, Copy);
        )*};
    }
    linear! {
        GrantTable<MockDomain>,
        OwnedPage<'static, MockDomain>,
        OwnedPages<'static, MockDomain>,
        GrantedPage<'static, MockDomain>,
        GrantedPages<'static, MockDomain>,
        LentPage<'static, MockDomain>,
        Reference<'static, MockDomain>,
        TransitiveGrant<'static, MockDomain>,
        MappedGrants<'static, MockDomain, 1>,
        MappedForReading<'static, MockDomain, 1>,
    }
}
