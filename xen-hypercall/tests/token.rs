//! What the token of a domain keeps for its owners.

use std::cell::Cell;
use std::ptr::NonNull;

use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{DomId, Domain, Errno, Gfn, GrantRoom, Hypercall, HypercallNr, Page, PageMemory, Part};

/// A platform that says which number its domain has, and counts how often it is asked.
struct Numbered {
    domain: MockDomain,
    number: Cell<Result<DomId, Errno>>,
    asked: Cell<usize>,
}

// SAFETY: the mock's domain does what it promises.
unsafe impl Hypercall for Numbered {
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
        // SAFETY: the caller's promise.
        unsafe { self.domain.hypercall(nr, args) }
    }
}

// SAFETY: the mock's domain does what it promises.
unsafe impl PageMemory for Numbered {
    fn alloc_pages(&self, count: usize) -> Option<NonNull<Page>> {
        self.domain.alloc_pages(count)
    }
    unsafe fn free_pages(&self, first: NonNull<Page>, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.domain.free_pages(first, count) }
    }
    fn gfn(&self, page: NonNull<Page>) -> Gfn {
        self.domain.gfn(page)
    }
}

// SAFETY: the mock's domain does what it promises; the number is what the test says.
unsafe impl GrantRoom for Numbered {
    fn reserve_room(&self, count: usize) -> Option<Gfn> {
        self.domain.reserve_room(count)
    }
    unsafe fn release_room(&self, first: Gfn, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.domain.release_room(first, count) }
    }
    unsafe fn room_address(&self, first: Gfn, count: usize) -> Option<NonNull<Page>> {
        // SAFETY: the caller's promise.
        unsafe { self.domain.room_address(first, count) }
    }
    fn own_domain(&self) -> Result<DomId, Errno> {
        self.asked.set(self.asked.get() + 1);
        self.number.get()
    }
}

#[test]
fn the_domains_number_is_asked_for_once_in_each_life() {
    let xen = MockXen::new();
    let kernel = &Numbered {
        domain: xen.domain(DomId(1)),
        number: Cell::new(Err(Errno::ENOSPC)),
        asked: Cell::new(0),
    };
    // SAFETY: nobody else uses the domain.
    let token = unsafe { Domain::new(kernel) }.unwrap();
    let claim = token.claim(Part::GrantTable).unwrap();
    let other = token.claim(Part::EventChannels).unwrap();
    // What failed is asked again.
    assert_eq!((claim.own_domain(), kernel.asked.get()), (Err(Errno::ENOSPC), 1));
    for (life, number) in [0, 1, 0x7fef, 7].into_iter().enumerate() {
        kernel.number.set(Ok(DomId(number)));
        kernel.asked.set(0);
        for _ in 0..3 {
            assert_eq!(claim.own_domain(), Ok(DomId(number)), "life {life}");
            assert_eq!(other.own_domain(), Ok(DomId(number)));
        }
        assert_eq!(kernel.asked.get(), 1, "all owners have one number");
        // In place it is the same domain.
        xen.register(HypercallNr::SCHED_OP, |_, _| 1);
        // SAFETY: one vCPU, one thread, no page of another domain is mapped.
        assert_eq!(unsafe { token.suspend() }, Ok(Resumed::InPlace));
        assert_eq!((claim.own_domain(), kernel.asked.get()), (Ok(DomId(number)), 1));
        xen.register(HypercallNr::SCHED_OP, |_, _| 0);
        // SAFETY: as above.
        assert_eq!(unsafe { token.suspend() }, Ok(Resumed::InNewDomain));
    }
}
