//! What the compiler checks of the types here: where the fields of Xen's structures are, and what may cross threads.

use core::mem::offset_of;
use static_assertions::{assert_impl_all, const_assert_eq};

use crate::abi::EvtchnFifoControlBlock;
use crate::{Error, Port, Priority, Stats, Virq};

const_assert_eq!(size_of::<EvtchnFifoControlBlock>(), 72);
const_assert_eq!(offset_of!(EvtchnFifoControlBlock, ready), 0);
const_assert_eq!(offset_of!(EvtchnFifoControlBlock, head), 8);

assert_impl_all!(Port: Send, Sync, Copy);
assert_impl_all!(Priority: Send, Sync, Copy);
assert_impl_all!(Virq: Send, Sync, Copy);
assert_impl_all!(Stats: Send, Sync, Copy);
assert_impl_all!(Error: Send, Sync, Copy, core::error::Error);

#[cfg(feature = "mock")]
mod with_a_platform {
    use static_assertions::{assert_impl_all, assert_not_impl_any};
    use xen_hypercall::mock::MockDomain;

    use crate::{Channel, EventChannels};

    // The interrupt handler of any vCPU and all tasks share these.
    assert_impl_all!(EventChannels<MockDomain>: Send, Sync);
    assert_impl_all!(Channel<'static, MockDomain>: Send, Sync);
    // Its port is closed once.
    assert_not_impl_any!(Channel<'static, MockDomain>: Clone, Copy);
}
