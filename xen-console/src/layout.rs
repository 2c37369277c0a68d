//! What the compiler checks of the types here: what may cross threads. The layout of its page is checked in `xen-ring`.

use static_assertions::assert_impl_all;

use crate::{Error, Stats};

assert_impl_all!(Stats: Send, Sync, Copy);
assert_impl_all!(Error: Send, Sync, Copy, core::error::Error);

#[cfg(feature = "mock")]
mod with_a_platform {
    use static_assertions::{assert_impl_all, assert_not_impl_any};
    use xen_hypercall::mock::MockDomain;

    use crate::mock::MockConsoled;
    use crate::{Console, XenConsole};

    // There is one of it, and it goes where it is needed.
    assert_impl_all!(Console<'static, MockDomain>: Send);
    assert_not_impl_any!(Console<'static, MockDomain>: Clone, Copy);
    assert_impl_all!(XenConsole<MockDomain>: Send);
    assert_impl_all!(MockConsoled: Send, Sync, Clone);
}
