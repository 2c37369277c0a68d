//! What a kernel implements to use the crates of this family.
#![allow(unsafe_code)]

use core::ptr::NonNull;
use core::time::Duration;

use crate::{DomId, Errno, Gfn, HypercallNr, Page, VcpuId, event};

/// The way into Xen.
///
/// A kernel usually takes one of [`arch`](crate::arch); a test takes [`MockDomain`](crate::mock::MockDomain).
///
/// Later versions may add methods, each with a body that does without the implementation's help.
///
/// # Implementation safety
/// `hypercall` performs exactly the call `nr` with exactly these arguments in the calling domain, and returns
/// what it returned. It has no effect on the guest's memory beyond those of the call itself.
pub unsafe trait Hypercall {
    /// Performs a hypercall with up to five arguments; those the call does not take are ignored.
    ///
    /// Below zero is a negated [`Errno`](crate::Errno).
    ///
    /// # Safety
    /// The caller knows call `nr`: each argument that the call takes as an address points to memory that is valid
    /// for what the call does with it, for as long as it does it, and what the call changes of the guest (its
    /// memory layout, pages that another domain may then reach) breaks no promise made to other code.
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize;
}

/// Whole pages of the guest's memory.
///
/// # Implementation safety
/// Pages given out are aligned as a [`Page`] is, valid for reads and writes, are given to nobody else until they come back by
/// `free_pages`, and stay where they are. `gfn` tells the frame that these bytes really live in.
///
/// Clones of a platform are handles to the same memory: a page that one of them gave out stays as long as any of them exists,
/// and may come back through another.
pub unsafe trait PageMemory {
    /// `count` zeroed pages in a row in the kernel's address space (their frames need not be in a row). None:
    /// out of memory.
    fn alloc_pages(&self, count: usize) -> Option<NonNull<Page>>;

    /// Takes pages back.
    ///
    /// # Safety
    /// `first` and `count` are of one `alloc_pages`; nothing uses the pages any more, in this domain or another.
    unsafe fn free_pages(&self, first: NonNull<Page>, count: usize);

    /// The frame of a page that `alloc_pages` gave out.
    fn gfn(&self, page: NonNull<Page>) -> Gfn;
}

/// Pages that Xen or the toolstack put into this domain's memory before it started ("special pages" in the toolstack's
/// words): those of the console and of xenstore, which HVM parameters name.
///
/// Only what uses such a page asks for it: a kernel without xenstore and console does without.
///
/// # Implementation safety
/// The address that `map_special` returns leads to the frames that it was asked for, in a row, cached as memory is, and stays
/// valid for reads and writes as long as the platform or a clone of it exists.
pub unsafe trait SpecialPages {
    /// Makes `count` special pages from `gfn` on accessible. The same frames may be asked for again, as after a resume. `None`:
    /// the kernel cannot reach them.
    ///
    /// # Safety
    /// Xen or the toolstack named these frames for the purpose they are then used for; they are not memory that
    /// the kernel uses for something else.
    unsafe fn map_special(&self, gfn: Gfn, count: usize) -> Option<NonNull<Page>>;
}

/// Room for pages of other domains: guest-physical addresses, and the kernel's own addresses for them.
///
/// Only a domain that uses what others grant needs it: a backend, or one end of a shared ring between guests.
///
/// A room is best near the guest's memory. Whoever saves or migrates the domain looks at every frame up to the highest that ever
/// had a page: with one in the middle of 40 bits of addresses that takes minutes, and a gigabyte.
///
/// # Implementation safety
/// The frames of a room hold no memory of the guest (nor a device), and the kernel gives them to nobody else until they
/// come back by `release_room`. `room_address` returns an address at which the kernel's page tables lead to these frames,
/// cached as memory is, for as long as the room is reserved; what Xen maps at the frames is then read and written there.
/// `own_domain` returns nothing but the number that the domain has at that moment.
pub unsafe trait GrantRoom: Hypercall {
    /// Reserves `count` frames in a row, and returns the first. `None`: no room left, or `count` is zero.
    ///
    /// There is nothing at the frames before something is mapped there: they must not be accessed.
    fn reserve_room(&self, count: usize) -> Option<Gfn>;

    /// Takes room back.
    ///
    /// # Safety
    /// `first` and `count` are of one `reserve_room`; nothing is mapped there any more.
    unsafe fn release_room(&self, first: Gfn, count: usize);

    /// Where the kernel sees `count` frames of its room from `first` on, in a row. `None`: it cannot show them so.
    ///
    /// # Safety
    /// The frames are of one `reserve_room`, and something is mapped at each.
    unsafe fn room_address(&self, first: Gfn, count: usize) -> Option<NonNull<Page>>;

    /// The number by which Xen knows this domain. Pages that it granted itself must not be mapped in its room: Xen takes
    /// them from where they were, and from whoever uses them there.
    ///
    /// Asks Xen each time, by three calls; [`Claim::own_domain`](crate::Claim::own_domain) keeps the number.
    ///
    /// # Errors
    /// As [`event::own_domain`].
    fn own_domain(&self) -> Result<DomId, Errno> {
        event::own_domain(&self)
    }
}

/// What time it is, and how a blocking helper passes it.
pub trait Wait {
    /// Time since an arbitrary start; never goes back.
    fn now(&self) -> Duration;

    /// Sleeps. Returns when an event may have arrived, at `deadline`, or early for no reason.
    ///
    /// Two kinds of event must not be slept over, because callers look for work first and sleep afterwards:
    /// - An event that Xen has raised and that nobody has dispatched yet: the call returns at once.
    /// - An event that an interrupt handler dispatches between the caller's look and the sleep. `is_due` tells of it. A
    ///   platform whose handler dispatches events calls `is_due` with interrupts off, as the last step before the
    ///   instruction that sleeps with interrupts on, and returns at once for `true`. A platform whose handler leaves the
    ///   dispatching to the caller need not call it.
    fn wait(&self, deadline: Option<Duration>, is_due: &dyn Fn() -> bool);

    /// The vCPU that makes the call, whose events a wait looks at. A kernel with several of them says so.
    fn vcpu(&self) -> VcpuId {
        VcpuId(0)
    }
}

/// Everything that a driver needs of the kernel.
pub trait Platform: Hypercall + PageMemory {}

impl<T: Hypercall + PageMemory + ?Sized> Platform for T {}

// SAFETY: every call is handed to the implementation behind the reference, which keeps the promises.
unsafe impl<T: Hypercall + ?Sized> Hypercall for &T {
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
        // SAFETY: the caller keeps the same promises to this call as to the inner one.
        unsafe { (**self).hypercall(nr, args) }
    }
}

// SAFETY: every call is handed to the implementation behind the reference, which keeps the promises.
unsafe impl<T: PageMemory + ?Sized> PageMemory for &T {
    fn alloc_pages(&self, count: usize) -> Option<NonNull<Page>> {
        (**self).alloc_pages(count)
    }

    unsafe fn free_pages(&self, first: NonNull<Page>, count: usize) {
        // SAFETY: the caller keeps the same promises to this call as to the inner one.
        unsafe { (**self).free_pages(first, count) }
    }

    fn gfn(&self, page: NonNull<Page>) -> Gfn {
        (**self).gfn(page)
    }
}

// SAFETY: every call is handed to the implementation behind the reference, which keeps the promises.
unsafe impl<T: SpecialPages + ?Sized> SpecialPages for &T {
    unsafe fn map_special(&self, gfn: Gfn, count: usize) -> Option<NonNull<Page>> {
        // SAFETY: the caller keeps the same promises to this call as to the inner one.
        unsafe { (**self).map_special(gfn, count) }
    }
}

// SAFETY: every call is handed to the implementation behind the reference, which keeps the promises.
unsafe impl<T: GrantRoom + ?Sized> GrantRoom for &T {
    fn reserve_room(&self, count: usize) -> Option<Gfn> {
        (**self).reserve_room(count)
    }

    unsafe fn release_room(&self, first: Gfn, count: usize) {
        // SAFETY: the caller keeps the same promises to this call as to the inner one.
        unsafe { (**self).release_room(first, count) }
    }

    unsafe fn room_address(&self, first: Gfn, count: usize) -> Option<NonNull<Page>> {
        // SAFETY: the caller keeps the same promises to this call as to the inner one.
        unsafe { (**self).room_address(first, count) }
    }

    fn own_domain(&self) -> Result<DomId, Errno> {
        (**self).own_domain()
    }
}

impl<T: Wait + ?Sized> Wait for &T {
    fn now(&self) -> Duration {
        (**self).now()
    }

    fn wait(&self, deadline: Option<Duration>, is_due: &dyn Fn() -> bool) {
        (**self).wait(deadline, is_due);
    }

    fn vcpu(&self) -> VcpuId {
        (**self).vcpu()
    }
}
