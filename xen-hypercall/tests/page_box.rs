//! A value in pages of its own goes with its last owner, and the pages go back.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, PAGE_SIZE, PageArc, PageBox, PageMemory};

fn guest() -> MockDomain {
    MockXen::new().domain(DomId(1))
}

/// Counts how often it is dropped.
struct Counted<'c>(&'c Cell<u32>);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn a_value_of_several_pages_is_read_and_written() {
    let guest = guest();
    let mut value = PageBox::new(&guest, || [7_u8; PAGE_SIZE + 1]).unwrap();
    assert_eq!(guest.pages_in_use(), 2);
    value[PAGE_SIZE] = 8;
    assert_eq!((value[0], value[PAGE_SIZE]), (7, 8));
    drop(value);
    assert_eq!(guest.pages_in_use(), 0);
}

#[test]
fn the_only_owner_takes_the_value_along() {
    let (guest, drops) = (guest(), Cell::new(0));
    let memory: &dyn PageMemory = &guest;
    let value = PageBox::new(memory, || Counted(&drops)).unwrap();
    assert_eq!((drops.get(), guest.pages_in_use()), (0, 1));
    drop(value);
    assert_eq!((drops.get(), guest.pages_in_use()), (1, 0));
}

#[test]
fn the_last_of_several_owners_takes_the_value_along() {
    let (guest, drops) = (guest(), Cell::new(0));
    let first = PageArc::new(&guest, Counted(&drops)).unwrap();
    let second = first.clone();
    let other = PageArc::new(&guest, Counted(&drops)).unwrap();
    assert!(first.is_same(&second) && !first.is_same(&other));
    drop(other);
    drop(first);
    assert_eq!((drops.get(), guest.pages_in_use()), (1, 1));
    drop(second);
    assert_eq!((drops.get(), guest.pages_in_use()), (2, 0));
}

#[test]
fn without_memory_there_is_none() {
    let (guest, drops) = (guest(), Cell::new(0));
    guest.fail_allocs_after(Some(0));
    assert!(PageBox::new(&guest, || Counted(&drops)).is_none());
    // Nobody made a value, so nobody drops one.
    assert_eq!(drops.get(), 0);
    // What was made before comes to its end.
    assert!(PageArc::new(&guest, Counted(&drops)).is_none());
    assert_eq!((drops.get(), guest.pages_in_use()), (1, 0));
}

#[test]
fn a_value_without_a_size_has_a_page() {
    let guest = guest();
    let value = PageBox::new(&guest, || ()).unwrap();
    assert_eq!((*value, guest.pages_in_use()), ((), 1));
    drop(value);
    assert_eq!(guest.pages_in_use(), 0);
}

#[test]
fn owners_are_on_several_threads() {
    /// Memory of the process, which threads may share.
    struct Heap;
    // SAFETY: each block is the allocator's own, aligned and zeroed, until it is given back.
    unsafe impl PageMemory for Heap {
        fn alloc_pages(&self, count: usize) -> Option<std::ptr::NonNull<xen_hypercall::Page>> {
            let layout = std::alloc::Layout::array::<xen_hypercall::Page>(count).ok()?;
            // SAFETY: the layout has a size, for `count` is not zero here.
            std::ptr::NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }.cast())
        }
        unsafe fn free_pages(&self, first: std::ptr::NonNull<xen_hypercall::Page>, count: usize) {
            let layout = std::alloc::Layout::array::<xen_hypercall::Page>(count).unwrap();
            // SAFETY: of one `alloc_pages` with the same count, by the caller's promise.
            unsafe { std::alloc::dealloc(first.as_ptr().cast(), layout) };
        }
        fn gfn(&self, _: std::ptr::NonNull<xen_hypercall::Page>) -> xen_hypercall::Gfn {
            xen_hypercall::Gfn(0)
        }
    }
    struct Last<'d>(AtomicU32, &'d AtomicU32);
    impl Drop for Last<'_> {
        fn drop(&mut self) {
            self.1.store(self.0.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
    let (heap, end) = (Heap, AtomicU32::new(0));
    std::thread::scope(|scope| {
        let value = PageArc::new(&heap, Last(AtomicU32::new(0), &end)).unwrap();
        for _ in 0..3 {
            let owner = value.clone();
            scope.spawn(move || owner.0.fetch_add(1, Ordering::Relaxed));
        }
    });
    assert_eq!(end.load(Ordering::Relaxed), 3);
}
