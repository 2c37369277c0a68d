//! The free list on loom's model of memory.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p xen-gnttab --release --test loom`
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loom::thread;
use xen_gnttab::free_list::{Links, pop, push};

const OWNED: u32 = u32::MAX;

struct Stack<const TAGGED: bool> {
    head: AtomicU64,
    /// Slot 0 is not used, as reference 0 is not.
    next: [AtomicU32; 4],
    /// Written by a reference's owner and by nobody else.
    owner: [loom::cell::UnsafeCell<u32>; 4],
}

// SAFETY: `owner` is accessed by a reference's only owner; that this holds is what loom checks.
unsafe impl<const TAGGED: bool> Sync for Stack<TAGGED> {}

impl<const TAGGED: bool> Stack<TAGGED> {
    fn new() -> Arc<Self> {
        let stack = Self {
            head: AtomicU64::new(0),
            next: core::array::from_fn(|_| AtomicU32::new(OWNED)),
            owner: core::array::from_fn(|_| loom::cell::UnsafeCell::new(0)),
        };
        (1..4).rev().for_each(|reference| push(&stack, reference));
        Arc::new(stack)
    }

    fn take(&self) -> Option<u32> {
        let reference = pop(self)?;
        // loom fails here if another thread is the owner, too, or its use is not ordered before this one.
        self.owner[reference as usize].with_mut(|owner| {
            // SAFETY: see above.
            unsafe { *owner += 1 };
        });
        Some(reference)
    }
}

impl<const TAGGED: bool> Links for Stack<TAGGED> {
    fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }
    fn exchange_head(&self, old: u64, new: u64) -> Result<(), u64> {
        let untagged = |head: u64| if TAGGED { head } else { head & 0xFFFF_FFFF };
        self.head
            .compare_exchange(untagged(old), untagged(new), Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
    }
    fn next(&self, reference: u32) -> Option<u32> {
        Some(self.next.get(reference as usize)?.load(Ordering::Relaxed))
    }
    fn set_next(&self, reference: u32, next: u32) {
        self.next[reference as usize].store(next, Ordering::Relaxed);
    }
}

fn one_takes_while_another_takes_two_and_gives_one_back<const TAGGED: bool>() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    model.check(|| {
        let stack = Stack::<TAGGED>::new();
        let other = stack.clone();
        let thread = thread::spawn(move || {
            let (first, second) = (other.take().unwrap(), other.take().unwrap());
            push(&*other, first);
            second
        });
        let mine = stack.take().unwrap();
        let theirs = thread.join().unwrap();
        assert_ne!(mine, theirs, "handed out twice");
        let last = stack.take().expect("a reference was lost");
        assert!(last != mine && last != theirs, "handed out twice");
        assert_eq!(stack.take(), None);
    });
}

#[test]
fn every_reference_has_one_owner() {
    one_takes_while_another_takes_two_and_gives_one_back::<true>();
}

#[test]
#[should_panic]
fn without_the_tag_one_is_handed_out_twice() {
    one_takes_while_another_takes_two_and_gives_one_back::<false>();
}

#[test]
fn giving_back_at_once_loses_none() {
    loom::model(|| {
        let stack = Stack::<true>::new();
        let (a, b) = (stack.take().unwrap(), stack.take().unwrap());
        let other = stack.clone();
        let thread = thread::spawn(move || push(&*other, a));
        push(&*stack, b);
        thread.join().unwrap();
        let mut all: Vec<u32> = (0..3).map(|_| stack.take().expect("a reference was lost")).collect();
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3]);
        assert_eq!(stack.take(), None);
    });
}
