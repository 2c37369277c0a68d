//! The kernel's own parts, on the host.

mod common;

use std::alloc::{Layout, alloc};
use std::ptr::NonNull;
use std::sync::Mutex;

use own_kernel_sample::{Frames, Kernel};
use xen_hypercall::mock::MockXen;
use xen_hypercall::{DomId, Domain, PAGE_SIZE, Page, PageMemory, Platform, Wait, version};

fn frames(count: usize) -> Frames {
    let layout = Layout::from_size_align(count * PAGE_SIZE, PAGE_SIZE).unwrap();
    // SAFETY: the size is not zero. The memory is never given back.
    let memory = unsafe { alloc(layout) };
    // They stay as long as the program, as a machine's do; a leak checker finds them here.
    static KEPT: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    KEPT.lock().unwrap().push(memory.expose_provenance());
    // SAFETY: as many pages, which nobody else has. Their addresses are as good as any: no Xen is told of them.
    unsafe { Frames::new(NonNull::new(memory).unwrap().cast::<Page>(), count) }
}

fn bytes(page: NonNull<Page>, count: usize) -> &'static mut [u8] {
    // SAFETY: the test has the pages to itself.
    unsafe { std::slice::from_raw_parts_mut(page.as_ptr().cast(), count * PAGE_SIZE) }
}

#[test]
fn pages_are_zeroed_and_whose_they_are() {
    let frames = frames(8);
    let (one, three) = (frames.alloc_pages(1).unwrap(), frames.alloc_pages(3).unwrap());
    bytes(one, 1).fill(1);
    bytes(three, 3).fill(3);
    assert!(bytes(one, 1).iter().all(|byte| *byte == 1));
    assert_eq!(frames.gfn(three).0, frames.gfn(one).0 + 1);
    assert_eq!(frames.free(), 4);
    assert_eq!(frames.alloc_pages(5), None);
    assert_eq!(frames.alloc_pages(0), None);
    assert_eq!(frames.alloc_pages(usize::MAX), None);
    // SAFETY: of one allocation, and not used any more.
    unsafe { frames.free_pages(one, 1) };
    assert_eq!(frames.free(), 5, "what was refused took nothing");
    assert_ne!(frames.alloc_pages(2), Some(one), "one page is not room for two");
    let again = frames.alloc_pages(1).unwrap();
    assert_eq!(again, one);
    assert!(bytes(again, 1).iter().all(|byte| *byte == 0));
}

#[test]
fn the_parts_make_a_platform() {
    fn is_platform<K: Platform + Wait>() {}
    is_platform::<common::OnMock>();
    #[cfg(target_arch = "x86_64")]
    is_platform::<own_kernel_sample::OnXen>();
}

#[test]
fn the_kernel_starts_on_the_mock() {
    let xen = MockXen::new();
    let kernel = common::on_mock(xen.domain(DomId(1)));
    assert_eq!(version::version(&kernel), Ok((4, 17)));
    // SAFETY: the guest has no other kernel.
    assert!(unsafe { Domain::new(&kernel) }.is_ok());
}

#[test]
fn a_part_of_the_kernels_own_works_with_those_of_the_mock() {
    let xen = MockXen::new();
    let guest = xen.domain(DomId(1));
    let kernel = Kernel { call: guest.clone(), memory: frames(4), time: guest };
    // SAFETY: the guest has no other kernel.
    let domain = unsafe { Domain::new(&kernel) }.unwrap();
    // The mock puts its page where the kernel's allocator says, and the token has another.
    assert_eq!(kernel.memory.free(), 2);
    drop(domain);
    assert_eq!(kernel.memory.free(), 3, "shared_info stays");
}
