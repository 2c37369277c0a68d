//! What the types are and are not, shown to the compiler.
#![cfg(feature = "mock")]

use std::cell::Cell;
use std::fmt::Debug;
use std::rc::Rc;

use static_assertions::{assert_impl_all, assert_not_impl_any, assert_obj_safe, const_assert_eq};
use xen_ring::mock::{HostileBack, HostilePeer, SharedPages};
use xen_ring::{
    Back, Backing, ByteRing, ConsoleLayout, Front, HEADER_SIZE, OutOfRange, Protocol, Reversed, RingError,
    SharedMem, StreamLayout, Violation, XenstoreLayout, slots_in,
};

/// Not `Send` itself: a ring does not own its protocol.
struct Net(#[allow(dead_code)] Rc<()>);
impl Protocol for Net {
    type Request = [u8; 12];
    type Response = [u8; 4];
}

struct Blk;
impl Protocol for Blk {
    type Request = [u8; 112];
    type Response = [u8; 16];
}

struct Nothing;
impl Protocol for Nothing {
    type Request = [u8; 0];
    type Response = [u8; 0];
}

/// Memory that is bound to its thread.
struct Bound(#[allow(dead_code)] Rc<Cell<u8>>);

// A view goes to another thread, but two threads do not use one.
assert_impl_all!(SharedMem<'static>: Send, Debug, Backing);
assert_not_impl_any!(SharedMem<'static>: Sync, Clone, Copy);

// A ring goes where its memory goes, and there is one of it.
assert_impl_all!(Front<Net, SharedPages>: Send, Sync, Debug);
assert_impl_all!(Front<Net, SharedMem<'static>>: Send);
assert_impl_all!(Back<Net, SharedMem<'static>>: Send, Debug);
assert_impl_all!(ByteRing<ConsoleLayout, SharedMem<'static>>: Send, Debug);
assert_not_impl_any!(Front<Net, SharedMem<'static>>: Sync);
assert_not_impl_any!(Front<Net, Bound>: Send);
assert_not_impl_any!(Back<Net, Bound>: Send);
assert_not_impl_any!(ByteRing<ConsoleLayout, Bound>: Send);
assert_not_impl_any!(Front<Net, SharedPages>: Clone, Copy);
assert_not_impl_any!(Back<Net, SharedPages>: Clone, Copy);
assert_not_impl_any!(ByteRing<XenstoreLayout, SharedPages>: Clone, Copy);

assert_impl_all!(SharedPages: Send, Sync, Clone, Backing);
assert_impl_all!(HostileBack<Net, SharedPages>: Send, Debug);
assert_impl_all!(HostilePeer<ConsoleLayout, SharedPages>: Send, Debug);
assert_impl_all!(RingError: Copy, std::error::Error, Send, Sync);
assert_impl_all!(OutOfRange: Copy, std::error::Error, Send, Sync);
assert_impl_all!(Violation: Copy, Debug, Send, Sync);
assert_obj_safe!(Backing);

// The sizes that io/ring.h counts for netif and blkif.
const_assert_eq!(HEADER_SIZE, 64);
const_assert_eq!(slots_in::<Net>(4096), 256);
const_assert_eq!(slots_in::<Blk>(4096), 32);
const_assert_eq!(slots_in::<Blk>(2 * 4096), 64);
const_assert_eq!(slots_in::<Blk>(16 * 4096), 512);
const_assert_eq!(slots_in::<Blk>(63), 0);
const_assert_eq!(slots_in::<Blk>(64 + 111), 0);
const_assert_eq!(slots_in::<Blk>(64 + 112), 1);
const_assert_eq!(slots_in::<Nothing>(4096), 0);
const_assert_eq!(slots_in::<Net>(usize::MAX), 1 << 31);

const fn same(a: (usize, u32), b: (usize, u32)) -> bool {
    a.0 == b.0 && a.1 == b.1
}
static_assertions::const_assert!(same(<Reversed<ConsoleLayout>>::OUT, ConsoleLayout::IN));
static_assertions::const_assert!(same(<Reversed<Reversed<ConsoleLayout>>>::OUT, ConsoleLayout::OUT));

#[test]
fn a_ring_of_one_slot_less_than_fits_does_not_exist() {
    for pages in 0..2 {
        let made = Front::<Nothing, _>::init(SharedPages::new(pages)).map(drop);
        assert!(matches!(made, Err(RingError::TooSmall(_))), "{made:?}");
    }
    let mut pages = SharedPages::new(1);
    for (len, slots) in [(0, 0), (63, 0), (64 + 111, 0), (64 + 112, 1), (64 + 3 * 112, 2), (4096, 32)] {
        let front = Front::<Blk, _>::init(pages.mem().slice(0, len).unwrap()).map(|ring| ring.slots());
        let back = Back::<Blk, _>::attach(pages.mem().slice(0, len).unwrap()).map(|ring| ring.slots());
        let hostile = HostileBack::<Blk, _>::new(pages.mem().slice(0, len).unwrap()).map(|ring| ring.slots());
        let expected = match slots {
            0 => Err(RingError::TooSmall(OutOfRange::new(64, 112, len))),
            slots => Ok(slots),
        };
        assert_eq!((front, back, hostile), (expected, expected, expected));
    }
}
