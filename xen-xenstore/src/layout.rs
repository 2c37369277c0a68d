//! What the compiler checks of the types here: where the fields of a message's header are, and what may cross threads.

use core::mem::offset_of;
use static_assertions::{assert_impl_all, const_assert_eq};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::wire::{Header, Operation};
use crate::{Error, Path, Stats, Watch};

const_assert_eq!(size_of::<Header>(), 16);
const_assert_eq!(offset_of!(Header, kind), 0);
const_assert_eq!(offset_of!(Header, request_id), 4);
const_assert_eq!(offset_of!(Header, transaction_id), 8);
const_assert_eq!(offset_of!(Header, len), 12);
assert_impl_all!(Header: FromBytes, IntoBytes, Immutable, KnownLayout, Send, Sync, Copy);

const_assert_eq!(size_of::<Operation>(), 4);
assert_impl_all!(Path: Send, Sync, Copy);
assert_impl_all!(Watch: Send, Sync, Copy);
assert_impl_all!(Stats: Send, Sync, Copy);
assert_impl_all!(Error: Send, Sync, Copy, core::error::Error);

#[cfg(feature = "mock")]
mod with_a_platform {
    use static_assertions::{assert_impl_all, assert_not_impl_any};
    use xen_hypercall::mock::MockDomain;

    use crate::Xenstore;
    use crate::mock::MockXenstored;

    // One task asks at a time; which one, may change.
    assert_impl_all!(Xenstore<'static, MockDomain>: Send);
    assert_not_impl_any!(Xenstore<'static, MockDomain>: Clone);
    assert_impl_all!(MockXenstored: Send, Sync, Clone);
}
