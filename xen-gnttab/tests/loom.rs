//! The free list, and how grants are taken away, on loom's model of memory.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p xen-gnttab --release --test loom`
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use loom::thread;
use xen_gnttab::entry::revoke;
use xen_gnttab::free_list::{self, Links, pop, pop_chain, push_chain};

const OWNED: u32 = u32::MAX;

fn push(links: &impl Links, reference: u32) -> bool {
    push_chain(links, reference, reference)
}

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
        (1..4).rev().for_each(|reference| assert!(!push(&stack, reference)));
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

    /// Takes two at once.
    fn take_two(&self) -> Option<[u32; 2]> {
        let first = pop_chain(self, 2)?;
        let second = self.next(first)?;
        for reference in [first, second] {
            self.owner[reference as usize].with_mut(|owner| {
                // SAFETY: as in `take`.
                unsafe { *owner += 1 };
            });
        }
        Some([first, second])
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
            assert!(!push(&*other, first));
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

fn one_takes_two_while_another_takes_and_gives_back<const TAGGED: bool>() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    model.check(|| {
        let stack = Stack::<TAGGED>::new();
        let other = stack.clone();
        let thread = thread::spawn(move || {
            let (first, second) = (other.take(), other.take());
            // Back in another order, so that the links are others, too.
            first.into_iter().for_each(|reference| assert!(!push(&*other, reference)));
            second
        });
        let mine = stack.take_two();
        let theirs = thread.join().unwrap();
        let mut all: Vec<u32> = mine.into_iter().flatten().chain(theirs).collect();
        all.extend(std::iter::from_fn(|| stack.take()));
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3]);
    });
}

#[test]
fn two_at_once_have_one_owner() {
    one_takes_two_while_another_takes_and_gives_back::<true>();
}

#[test]
#[should_panic]
fn without_the_tag_two_at_once_are_handed_out_twice() {
    one_takes_two_while_another_takes_and_gives_back::<false>();
}

/// Empties the stack, waits, and meanwhile another gives one back. `note` is how the waiter says that it waits.
fn nobody_sleeps_over_a_reference(note: fn(&Stack<true>) -> bool) {
    loom::model(move || {
        let stack = Stack::<true>::new();
        let taken: Vec<u32> = (0..3).map(|_| stack.take().unwrap()).collect();
        let waker = Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let (other, theirs) = (stack.clone(), waker.clone());
        let back = taken[1];
        let thread = thread::spawn(move || push(&*other, back) && theirs.load(Ordering::Relaxed));
        waker.store(true, Ordering::Relaxed);
        let waits = note(&stack);
        let woken = thread.join().unwrap();
        assert!(!waits || woken, "it waits, and nobody wakes it");
    });
}

#[test]
fn who_waits_is_woken() {
    nobody_sleeps_over_a_reference(|stack| free_list::wait(stack));
}

#[test]
#[should_panic]
fn who_only_looks_is_not() {
    nobody_sleeps_over_a_reference(|stack| stack.head() as u32 == 0);
}

/// A page that its owner takes away while Xen lets a peer use it. Loom fails if both have it at once.
struct Shared {
    flags: AtomicU16,
    status: AtomicU16,
    page: loom::cell::UnsafeCell<u32>,
}

// SAFETY: `page` is accessed by whoever has it; that this is one is what loom checks.
unsafe impl Sync for Shared {}

const GRANTED: u16 = 1;
const BOTH: u16 = revoke::IN_USE;

impl Shared {
    fn use_page(&self) {
        self.page.with_mut(|page| {
            // SAFETY: see above.
            unsafe { *page += 1 };
        });
    }
}

struct V1<'a>(&'a Shared);

impl revoke::FlagsV1 for V1<'_> {
    fn load(&self) -> u16 {
        self.0.flags.load(Ordering::Relaxed)
    }
    fn clear(&self, old: u16) -> Result<(), u16> {
        self.0.flags.compare_exchange(old, 0, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }
}

struct V2<'a, const FENCED: bool>(&'a Shared);

impl<const FENCED: bool> revoke::WordsV2 for V2<'_, FENCED> {
    fn clear_flags(&self) {
        self.0.flags.store(0, Ordering::Relaxed);
    }
    fn fence(&self) {
        if FENCED {
            fence(Ordering::SeqCst);
        }
    }
    fn status(&self) -> u16 {
        self.0.status.load(Ordering::Acquire)
    }
}

/// Xen lets the peer use a version 1 grant, once, if it is one.
fn peer_v1(shared: &Shared) {
    let flags = shared.flags.load(Ordering::Relaxed);
    if flags & GRANTED == 0 {
        return;
    }
    if shared.flags.compare_exchange(flags, flags | BOTH, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
        shared.use_page();
        shared.flags.fetch_and(!BOTH, Ordering::Release);
    }
}

/// Likewise with version 2.
fn peer_v2(shared: &Shared) {
    if shared.flags.load(Ordering::Relaxed) & GRANTED == 0 {
        return;
    }
    shared.status.fetch_or(BOTH, Ordering::AcqRel);
    fence(Ordering::SeqCst);
    if shared.flags.load(Ordering::Relaxed) & GRANTED != 0 {
        shared.use_page();
    }
    shared.status.fetch_and(!BOTH, Ordering::Release);
}

fn a_page_is_taken_away(peer: fn(&Shared), revoke: fn(&Shared) -> bool) {
    loom::model(move || {
        let shared = Arc::new(Shared {
            flags: AtomicU16::new(GRANTED),
            status: AtomicU16::new(0),
            page: loom::cell::UnsafeCell::new(0),
        });
        let theirs = shared.clone();
        let thread = thread::spawn(move || peer(&theirs));
        // The second time is the sweep's.
        if revoke(&shared) || revoke(&shared) {
            shared.use_page();
        }
        thread.join().unwrap();
        assert!(revoke(&shared), "nobody uses it any more");
    });
}

#[test]
fn version_1_never_gives_a_page_to_both() {
    a_page_is_taken_away(peer_v1, |shared| revoke::revoke_v1(&V1(shared)));
}

#[test]
fn version_2_never_gives_a_page_to_both() {
    a_page_is_taken_away(peer_v2, |shared| revoke::revoke_v2(&V2::<true>(shared)));
}

#[test]
#[should_panic]
fn version_2_without_the_fence_does() {
    a_page_is_taken_away(peer_v2, |shared| revoke::revoke_v2(&V2::<false>(shared)));
}
