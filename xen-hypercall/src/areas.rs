//! Where the `vcpu_info` of each vCPU is that is not in `shared_info`.
#![allow(unsafe_code, reason = "gives pages to Xen")]

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

use crate::abi::shared_info::VCPU_INFO_SIZE;
use crate::vcpu::register_vcpu_info;
use crate::{Errno, PAGE_SIZE, Page, Platform, VcpuId};

/// From one area to the next: a cache line, and as much as a `vcpu_info` takes on any architecture.
const STRIDE: usize = 64;
/// Areas in a page.
const IN_PAGE: usize = PAGE_SIZE / STRIDE;
const PAGES: usize = 8;
/// vCPUs that can have an area.
pub(crate) const VCPUS: usize = PAGES * IN_PAGE;
const _: () = assert!(VCPU_INFO_SIZE <= STRIDE && STRIDE % 8 == 0);

/// Xen has no area for the vCPU.
const NOWHERE: u8 = 0;
/// Xen is being asked. Whoever looks for events looks there already: Xen marks all as pending when it takes the place.
const MOVING: u8 = 1;
/// It is there for as long as the domain lives.
const THERE: u8 = 2;

/// The areas of all vCPUs. Their pages come when they are needed, and stay with Xen.
pub(crate) struct Areas {
    pages: [AtomicPtr<Page>; PAGES],
    /// What became of each vCPU.
    states: [AtomicU8; VCPUS],
}

impl Areas {
    pub(crate) const fn new() -> Self {
        Self {
            pages: [const { AtomicPtr::new(ptr::null_mut()) }; PAGES],
            states: [const { AtomicU8::new(NOWHERE) }; VCPUS],
        }
    }

    /// The page and the offset of a vCPU's area, if it has one.
    #[inline]
    pub(crate) fn get(&self, vcpu: VcpuId) -> Option<(NonNull<Page>, usize)> {
        let vcpu = vcpu.0 as usize;
        // The page was there before the state said so.
        let state = self.states.get(vcpu)?.load(Ordering::Acquire);
        if state == NOWHERE { None } else { self.place(vcpu) }
    }

    fn place(&self, vcpu: usize) -> Option<(NonNull<Page>, usize)> {
        let page = self.pages.get(vcpu / IN_PAGE)?.load(Ordering::Acquire);
        Some((NonNull::new(page)?, vcpu % IN_PAGE * STRIDE))
    }

    /// Moves a vCPU's `vcpu_info` to its area.
    pub(crate) fn register(
        &self,
        platform: &impl Platform,
        vcpu: VcpuId,
    ) -> Result<(NonNull<Page>, usize), Errno> {
        let index = vcpu.0 as usize;
        let (Some(state), Some(slot)) = (self.states.get(index), self.pages.get(index / IN_PAGE)) else {
            return Err(Errno::ENOENT);
        };
        if slot.load(Ordering::Acquire).is_null() {
            let page = platform.alloc_pages(1).ok_or(Errno::ENOMEM)?;
            let won =
                slot.compare_exchange(ptr::null_mut(), page.as_ptr(), Ordering::AcqRel, Ordering::Acquire);
            if won.is_err() {
                // SAFETY: allocated above, and nobody has seen it.
                unsafe { platform.free_pages(page, 1) };
            }
        }
        match state.compare_exchange(NOWHERE, MOVING, Ordering::AcqRel, Ordering::Acquire) {
            Err(MOVING) => return Err(Errno::EBUSY),
            Err(_) => return Err(Errno::EINVAL),
            Ok(_) => {}
        }
        let (page, offset) = self.place(index).ok_or(Errno::ENOMEM)?;
        // SAFETY: the page was allocated for this, is never freed, and is accessed by atomics alone. The place within it is
        // this vCPU's alone.
        let moved = unsafe { register_vcpu_info(platform, vcpu, platform.gfn(page), offset as u32) };
        state.store(if moved.is_ok() { THERE } else { NOWHERE }, Ordering::Release);
        moved.map(|()| (page, offset))
    }

    /// Gives all areas to Xen again, which knows of none in a new domain. A vCPU that this one does not have has none any
    /// more. Nobody else runs.
    pub(crate) fn restore(&self, platform: &impl Platform) -> Result<(), Errno> {
        for (index, state) in self.states.iter().enumerate() {
            if state.load(Ordering::Relaxed) == NOWHERE {
                continue;
            }
            let Some((page, offset)) = self.place(index) else { continue };
            // SAFETY: as in `register`.
            let moved = unsafe {
                register_vcpu_info(platform, VcpuId(index as u32), platform.gfn(page), offset as u32)
            };
            match moved {
                Ok(()) => {}
                Err(Errno::ENOENT) => state.store(NOWHERE, Ordering::Relaxed),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
