//! The platform traits for owners of a platform on the heap: `Box`, `Rc` and `Arc`.
#![allow(unsafe_code, reason = "hands unsafe calls on")]

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;
use core::ptr::NonNull;
use core::time::Duration;

use crate::{
    DomId, Errno, Gfn, GrantRoom, Hypercall, HypercallNr, Page, PageMemory, SpecialPages, VcpuId, Wait,
};

macro_rules! owner {
    ($owner:ident) => {
        // SAFETY: every call is handed to the implementation that is owned, which keeps the promises.
        unsafe impl<T: Hypercall + ?Sized> Hypercall for $owner<T> {
            unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
                // SAFETY: the caller keeps the same promises to this call as to the inner one.
                unsafe { (**self).hypercall(nr, args) }
            }
        }

        // SAFETY: every call is handed to the implementation that is owned, which keeps the promises.
        unsafe impl<T: PageMemory + ?Sized> PageMemory for $owner<T> {
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

        // SAFETY: every call is handed to the implementation that is owned, which keeps the promises.
        unsafe impl<T: SpecialPages + ?Sized> SpecialPages for $owner<T> {
            unsafe fn map_special(&self, gfn: Gfn, count: usize) -> Option<NonNull<Page>> {
                // SAFETY: the caller keeps the same promises to this call as to the inner one.
                unsafe { (**self).map_special(gfn, count) }
            }
        }

        // SAFETY: every call is handed to the implementation that is owned, which keeps the promises.
        unsafe impl<T: GrantRoom + ?Sized> GrantRoom for $owner<T> {
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

        impl<T: Wait + ?Sized> Wait for $owner<T> {
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
    };
}

owner!(Box);
owner!(Rc);
owner!(Arc);
