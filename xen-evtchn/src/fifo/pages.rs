//! The memory of the FIFO ABI: pages of event words, one page of control blocks, one page that says where they are.
#![allow(unsafe_code)]

use core::hint;
use core::mem::offset_of;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, Ordering};

use xen_hypercall::{Errno, PAGE_SIZE, Page, Platform, VcpuArea, VcpuId, event};

use super::MASKED;
use crate::Error;
use crate::abi::{EVTCHN_FIFO_MAX_QUEUES, EVTCHN_FIFO_NR_CHANNELS, EvtchnFifoControlBlock};

/// Event words in a page.
const WORDS: usize = PAGE_SIZE / size_of::<u32>();
/// Pages that hold the words of all ports.
const ARRAY_PAGES: usize = EVTCHN_FIFO_NR_CHANNELS as usize / WORDS;
/// vCPUs that can be told of events.
const VCPUS: usize = VcpuArea::VCPUS as usize;
/// Control blocks in a page.
const BLOCKS: usize = 32;
/// From one control block to the next.
const STRIDE: usize = PAGE_SIZE / BLOCKS;
const _: () = assert!(BLOCKS == u32::BITS as usize && VCPUS % BLOCKS == 0);
const _: () = assert!(STRIDE >= size_of::<EvtchnFifoControlBlock>() && STRIDE % 8 == 0);

/// How often to look whether another vCPU has finished adding a page. That takes one hypercall.
const PATIENCE: usize = 1_000_000;

/// The only handle to the pages. They belong to Xen as well until the domain ends or resets its event channels, so they
/// are not freed when the handle is dropped.
pub(crate) struct Pages(NonNull<Index>);

// SAFETY: the page behind it is reached by atomics only (`control` is written before the handle exists), and stays
// until `reset`, which consumes the handle.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

/// Where everything is, in a page of its own that Xen does not know.
struct Index {
    array: [AtomicPtr<[AtomicU32; WORDS]>; ARRAY_PAGES],
    /// How many pages of the array Xen has.
    pages: AtomicU32,
    growing: AtomicBool,
    gates: [AtomicU8; VCPUS],
    /// Control blocks, in a page for each 32 vCPUs of which one was added.
    control: [AtomicPtr<Page>; VCPUS / BLOCKS],
    /// A bit for each vCPU whose control block Xen has.
    vcpus: [AtomicU32; VCPUS / BLOCKS],
}

const _: () = assert!(size_of::<Index>() <= PAGE_SIZE);

impl Pages {
    /// Switches the domain to the FIFO ABI, with vCPU 0 and the words of the first 1024 ports.
    pub(crate) fn start(platform: &dyn Platform) -> Result<Self, Error> {
        let [index, control, words] = alloc(platform)?;
        let pages = Self(index.cast());
        let fresh = Index {
            array: [const { AtomicPtr::new(ptr::null_mut()) }; ARRAY_PAGES],
            pages: AtomicU32::new(0),
            growing: AtomicBool::new(false),
            gates: [const { AtomicU8::new(0) }; VCPUS],
            control: [const { AtomicPtr::new(ptr::null_mut()) }; VCPUS / BLOCKS],
            vcpus: [const { AtomicU32::new(0) }; VCPUS / BLOCKS],
        };
        // SAFETY: the page is ours alone, large enough (asserted above) and aligned.
        unsafe { pages.0.write(fresh) };
        if let Some(first) = pages.index().control.first() {
            first.store(control.as_ptr(), Ordering::Release);
        }
        if let Err(error) = pages.add_vcpu(platform, VcpuId(0)) {
            for page in [index, control, words] {
                // SAFETY: allocated above one by one; Xen took none of them, because its only call failed.
                unsafe { platform.free_pages(page, 1) };
            }
            return Err(error);
        }
        pages.give(platform, words)?;
        Ok(pages)
    }

    fn index(&self) -> &Index {
        // SAFETY: initialised by `start` before the handle was given out; valid until `reset`.
        unsafe { self.0.as_ref() }
    }

    /// Gives Xen a vCPU's control block, if it does not have it.
    pub(crate) fn add_vcpu(&self, platform: &dyn Platform, vcpu: VcpuId) -> Result<(), Error> {
        match self.has_vcpu(vcpu) {
            // Xen takes it once, and what came after that may have failed.
            Ok(()) => Ok(()),
            Err(_) => self.give_control(platform, vcpu),
        }
    }

    fn give_control(&self, platform: &dyn Platform, vcpu: VcpuId) -> Result<(), Error> {
        let (group, offset) = place(vcpu);
        let (Some(added), Some(control)) = (self.index().vcpus.get(group), self.index().control.get(group))
        else {
            return Err(Error::VcpuOutOfRange(vcpu));
        };
        let page = match NonNull::new(control.load(Ordering::Acquire)) {
            Some(page) => page,
            None => add_page(control, platform)?,
        };
        // SAFETY: these bytes of the control page are this vCPU's alone, and are only reached by atomics.
        unsafe { event::init_control(&platform, platform.gfn(page), offset as u32, vcpu) }
            .map_err(refused("EVTCHNOP_init_control"))?;
        added.fetch_or(bit(vcpu), Ordering::Release);
        Ok(())
    }

    /// Whether Xen has a vCPU's control block. Without one it drops the events that are bound to the vCPU.
    pub(crate) fn has_vcpu(&self, vcpu: VcpuId) -> Result<(), Error> {
        let added = self.index().vcpus.get(place(vcpu).0).ok_or(Error::VcpuOutOfRange(vcpu))?;
        if added.load(Ordering::Acquire) & bit(vcpu) != 0 { Ok(()) } else { Err(Error::VcpuNotAdded(vcpu)) }
    }

    /// Sees to it that a port has a word.
    pub(crate) fn ensure(&self, platform: &dyn Platform, port: u32) -> Result<(), Error> {
        let page = port as usize / WORDS;
        if page >= ARRAY_PAGES {
            return Err(Error::PortOutOfRange(crate::Port(port)));
        }
        // Xen takes pages in order without being told a number, so only one may add at a time.
        let index = self.index();
        let mut patience = PATIENCE;
        while index.pages.load(Ordering::Acquire) as usize <= page {
            if index.growing.swap(true, Ordering::Acquire) {
                // Who adds may also be what this code interrupted, which then cannot finish.
                patience = patience.checked_sub(1).ok_or(Error::Busy)?;
                hint::spin_loop();
                continue;
            }
            let _turn = Turn(&index.growing);
            self.grow(platform, page)?;
        }
        Ok(())
    }

    /// Adds a page if `page` is not there yet. Called by one at a time.
    fn grow(&self, platform: &dyn Platform, page: usize) -> Result<(), Error> {
        if self.index().pages.load(Ordering::Acquire) as usize > page {
            return Ok(());
        }
        // One that Xen refused is there still.
        let index = self.index();
        let next = index.array.get(index.pages.load(Ordering::Acquire) as usize).ok_or(Error::OutOfMemory)?;
        let kept = NonNull::new(next.load(Ordering::Acquire)).map(NonNull::cast);
        self.give(platform, kept.or_else(|| platform.alloc_pages(1)).ok_or(Error::OutOfMemory)?)
    }

    /// Makes a page the next of the array. Called by one at a time. If Xen refuses it the page stays where it is, for the next
    /// try: another vCPU may have found it by then.
    fn give(&self, platform: &dyn Platform, page: NonNull<Page>) -> Result<(), Error> {
        let words = page.cast::<[AtomicU32; WORDS]>();
        // SAFETY: allocated for this: valid, aligned, only reached by atomics; a zeroed page is a valid array of them.
        for word in unsafe { words.as_ref() } {
            // No port has an owner yet, and without one it is masked.
            word.store(MASKED, Ordering::Relaxed);
        }
        let index = self.index();
        let next = index.pages.load(Ordering::Acquire);
        let slot = index.array.get(next as usize).ok_or(Error::OutOfMemory)?;
        // Before Xen has it: from then on a port in it may be in a queue.
        slot.store(words.as_ptr(), Ordering::Release);
        // SAFETY: the page is only reached by atomics from here on, and not freed before a reset.
        unsafe { event::expand_array(&platform, platform.gfn(page)) }
            .map_err(refused("EVTCHNOP_expand_array"))?;
        index.pages.store(next + 1, Ordering::Release);
        Ok(())
    }

    /// A port's word; none beyond the array.
    pub(crate) fn word(&self, port: u32) -> Option<&AtomicU32> {
        let words = self.index().array.get(port as usize / WORDS)?.load(Ordering::Acquire);
        // SAFETY: null, or published by `give`, fully initialised before (Release there, Acquire here), and there until
        // `reset`, which consumes the handle.
        let words = unsafe { words.as_ref() }?;
        words.get(port as usize % WORDS)
    }

    pub(crate) fn gate(&self, vcpu: VcpuId) -> Option<&AtomicU8> {
        self.index().gates.get(vcpu.0 as usize)
    }

    pub(crate) fn ready(&self, vcpu: VcpuId) -> Option<&AtomicU32> {
        self.control(vcpu, offset_of!(EvtchnFifoControlBlock, ready))
    }

    pub(crate) fn head(&self, vcpu: VcpuId, queue: usize) -> Option<&AtomicU32> {
        if queue >= EVTCHN_FIFO_MAX_QUEUES {
            return None;
        }
        self.control(vcpu, offset_of!(EvtchnFifoControlBlock, head) + queue * size_of::<u32>())
    }

    fn control(&self, vcpu: VcpuId, field: usize) -> Option<&AtomicU32> {
        debug_assert!(field % 4 == 0 && field < size_of::<EvtchnFifoControlBlock>());
        let (group, offset) = place(vcpu);
        let page = NonNull::new(self.index().control.get(group)?.load(Ordering::Acquire))?;
        // SAFETY: the block lies in the control page, and the field within the block, aligned to 4 bytes. The page is zeroed at
        // first, then only reached by atomics, and stays as long as the handle.
        Some(unsafe { AtomicU32::from_ptr(page.as_ptr().cast::<u8>().add(offset + field).cast()) })
    }

    /// Switches a domain that was resumed in a new one to the FIFO ABI: the same control blocks, empty, and the same pages of
    /// words, all masked. Nobody uses them meanwhile.
    pub(crate) fn resume(&self, platform: &dyn Platform) -> Result<(), Error> {
        let index = self.index();
        for vcpu in (0..VCPUS as u32).map(VcpuId) {
            if self.has_vcpu(vcpu).is_err() {
                continue;
            }
            for field in (0..size_of::<EvtchnFifoControlBlock>()).step_by(size_of::<u32>()) {
                if let Some(word) = self.control(vcpu, field) {
                    word.store(0, Ordering::Relaxed);
                }
            }
            if let Some(gate) = self.gate(vcpu) {
                gate.store(0, Ordering::Relaxed);
            }
            self.give_control(platform, vcpu)?;
        }
        let pages = index.pages.swap(0, Ordering::AcqRel);
        for slot in index.array.iter().take(pages as usize) {
            let words = NonNull::new(slot.load(Ordering::Acquire)).ok_or(Error::OutOfMemory)?;
            self.give(platform, words.cast())?;
        }
        Ok(())
    }

    /// Closes all ports, goes back to the two-level ABI, and frees everything.
    pub(crate) fn reset(self, platform: &dyn Platform) -> Result<(), Error> {
        event::reset(&platform).map_err(refused("EVTCHNOP_reset"))?;
        let index = self.index();
        let words = index.array.iter().map(|slot| slot.load(Ordering::Acquire).cast::<Page>());
        let control = index.control.iter().map(|slot| slot.load(Ordering::Acquire));
        for page in words.chain(control).filter_map(NonNull::new) {
            // SAFETY: allocated as a single page by this platform. Xen has given it up, and this only handle, through which
            // alone it is reached, ends here.
            unsafe { platform.free_pages(page, 1) };
        }
        // SAFETY: as above.
        unsafe { platform.free_pages(self.0.cast(), 1) };
        Ok(())
    }
}

/// The turn to add a page, given back however that ends.
struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// As many single pages, or none.
fn alloc<const N: usize>(platform: &dyn Platform) -> Result<[NonNull<Page>; N], Error> {
    let mut pages = [NonNull::dangling(); N];
    for count in 0..N {
        let Some(page) = platform.alloc_pages(1) else {
            for page in pages.iter().take(count) {
                // SAFETY: allocated just before, one by one, and used by nobody.
                unsafe { platform.free_pages(*page, 1) };
            }
            return Err(Error::OutOfMemory);
        };
        pages[count] = page;
    }
    Ok(pages)
}

/// Puts a page where none is, or finds that of another vCPU that was faster.
fn add_page(slot: &AtomicPtr<Page>, platform: &dyn Platform) -> Result<NonNull<Page>, Error> {
    let page = platform.alloc_pages(1).ok_or(Error::OutOfMemory)?;
    let placed = slot.compare_exchange(ptr::null_mut(), page.as_ptr(), Ordering::AcqRel, Ordering::Acquire);
    match placed.err().and_then(NonNull::new) {
        None => Ok(page),
        Some(other) => {
            // SAFETY: allocated above, and nobody has seen it.
            unsafe { platform.free_pages(page, 1) };
            Ok(other)
        }
    }
}

/// The page of a vCPU's control block, and the offset in it.
fn place(vcpu: VcpuId) -> (usize, usize) {
    let vcpu = vcpu.0 as usize;
    (vcpu / BLOCKS, vcpu % BLOCKS * STRIDE)
}

/// Of the word of its page.
fn bit(vcpu: VcpuId) -> u32 {
    1 << (vcpu.0 % u32::BITS)
}

fn refused(operation: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::Hypercall { operation, errno }
}
