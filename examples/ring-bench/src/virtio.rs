//! The peer: the queue of the `virtio-drivers` crate and its drivers for cards and disks, with a device of our own that
//! answers everything in order. What is measured are the functions with names; the device runs outside of them.
#![allow(unsafe_code, reason = "is a device, which reads and writes the driver's memory")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use virtio_drivers::device::blk::{BlkReq, BlkResp, VirtIOBlk};
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Turns;

/// As many as a ring of `netif` has.
const SIZE: usize = 256;
const BLOCK: usize = 4096;
/// `VIRTIO_F_RING_EVENT_IDX` and `VIRTIO_F_VERSION_1`: notifications by index, as in Xen's rings.
const FEATURES: u64 = 1 << 29 | 1 << 32;

/// A machine whose devices reach buffers where they are: as cheap as it gets.
#[derive(Debug)]
pub struct Direct;

// SAFETY: the allocator's pages, aligned and zeroed; addresses are their own "physical" ones.
unsafe impl Hal for Direct {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: the size is not zero.
        let memory = NonNull::new(unsafe { alloc_zeroed(pages_of(pages)) }).expect("memory");
        (memory.as_ptr() as PhysAddr, memory)
    }

    unsafe fn dma_dealloc(_: PhysAddr, memory: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: of `dma_alloc` and as large, the caller says.
        unsafe { dealloc(memory.as_ptr(), pages_of(pages)) };
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("nothing here is in PCI")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

fn pages_of(pages: usize) -> Layout {
    Layout::from_size_align(pages.max(1) * 4096, 4096).expect("not too large")
}

thread_local! {
    /// Pages that are free, each with the address of the next in its first bytes.
    static FREE: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// A machine whose devices see pages of their own alone, and each buffer is copied there: what `xen-netfront` does
/// unless pages are handed over.
#[derive(Debug)]
pub struct Copied;

// SAFETY: as `Direct`; a page of the pool has one user.
unsafe impl Hal for Copied {
    fn dma_alloc(pages: usize, direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        Direct::dma_alloc(pages, direction)
    }

    unsafe fn dma_dealloc(address: PhysAddr, memory: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { Direct::dma_dealloc(address, memory, pages) }
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("nothing here is in PCI")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let mut page = FREE.get();
        if page.is_null() {
            page = Direct::dma_alloc(1, direction).1.as_ptr();
        } else {
            // SAFETY: a free page has the next one's address.
            FREE.set(unsafe { page.cast::<*mut u8>().read() });
        }
        assert!(buffer.len() <= 4096, "more than a page");
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: the buffer is valid, the caller says, and the page has room and nobody else uses it.
            unsafe { page.copy_from_nonoverlapping(buffer.cast::<u8>().as_ptr(), buffer.len()) };
        }
        page as PhysAddr
    }

    unsafe fn unshare(address: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        let page = address as *mut u8;
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: as in `share`.
            unsafe { page.copy_to_nonoverlapping(buffer.cast::<u8>().as_ptr(), buffer.len()) };
        }
        // SAFETY: nobody uses it any more.
        unsafe { page.cast::<*mut u8>().write(FREE.get()) };
        FREE.set(page);
    }
}

/// Where a queue is, as the driver told it.
#[derive(Clone, Copy, Default, Debug)]
struct Place {
    size: u16,
    descriptors: usize,
    available: usize,
    used: usize,
    /// How much of it the device has seen.
    seen: u16,
}

/// Between driver and device.
#[derive(Clone)]
struct Wires {
    kind: DeviceType,
    places: Rc<RefCell<[Place; 2]>>,
    notified: Rc<Cell<u64>>,
    /// In which the capacity of a disk comes first.
    config: [u8; 64],
}

impl Wires {
    fn new(kind: DeviceType) -> Self {
        let mut config = [0; 64];
        config[..8].copy_from_slice(&(1_u64 << 20).to_le_bytes());
        Self { kind, places: Rc::default(), notified: Rc::default(), config }
    }

    /// The device answers all there is in a queue, with so many bytes each. `answer` gets the last descriptor's buffer.
    fn serve(&self, queue: usize, len: u32, answer: impl Fn(*mut u8)) -> usize {
        let place = &mut self.places.borrow_mut()[queue];
        let size = usize::from(place.size);
        let (available, used) = (place.available as *const u16, place.used as *mut u16);
        // SAFETY: the queue's three parts are where the driver said, and of the layout that the virtio specification gives
        // them; the driver does not run meanwhile. Buffers are valid until they are answered.
        unsafe {
            let until = available.add(1).read_volatile();
            let mut count = 0;
            while place.seen != until {
                let index = usize::from(place.seen) % size;
                let head = available.add(2 + index).read_volatile();
                let mut descriptor = (place.descriptors as *const u8).add(usize::from(head) * 16);
                while descriptor.add(12).cast::<u16>().read_volatile() & 1 != 0 {
                    let next = descriptor.add(14).cast::<u16>().read_volatile();
                    descriptor = (place.descriptors as *const u8).add(usize::from(next) * 16);
                }
                answer(descriptor.cast::<u64>().read_volatile() as *mut u8);
                let element = used.add(2).cast::<[u32; 2]>().add(index);
                element.write_volatile([head.into(), len]);
                place.seen = place.seen.wrapping_add(1);
                count += 1;
            }
            used.add(1).write_volatile(place.seen);
            // The driver is to notify of the next.
            used.add(2).cast::<[u32; 2]>().add(size).cast::<u16>().write_volatile(place.seen);
            count
        }
    }
}

impl fmt::Debug for Wires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wires").field("places", &self.places).finish_non_exhaustive()
    }
}

impl Transport for Wires {
    fn device_type(&self) -> DeviceType {
        self.kind
    }
    fn read_device_features(&mut self) -> u64 {
        FEATURES
    }
    fn write_driver_features(&mut self, _: u64) {}
    fn max_queue_size(&mut self, _: u16) -> u32 {
        SIZE as u32
    }
    fn notify(&mut self, _: u16) {
        self.notified.set(self.notified.get() + 1);
    }
    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::empty()
    }
    fn set_status(&mut self, _: DeviceStatus) {}
    fn set_guest_page_size(&mut self, _: u32) {}
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        available: PhysAddr,
        used: PhysAddr,
    ) {
        let (descriptors, available, used) = (descriptors as usize, available as usize, used as usize);
        self.places.borrow_mut()[usize::from(queue)] =
            Place { size: size as u16, descriptors, available, used, seen: 0 };
    }
    fn queue_unset(&mut self, queue: u16) {
        self.places.borrow_mut()[usize::from(queue)] = Place::default();
    }
    fn queue_used(&mut self, queue: u16) -> bool {
        self.places.borrow()[usize::from(queue)].size != 0
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }
    fn read_config_generation(&self) -> u32 {
        0
    }
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        T::read_from_prefix(&self.config[offset..])
            .map(|(value, _)| value)
            .map_err(|_| virtio_drivers::Error::ConfigSpaceTooSmall)
    }
    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _: usize, _: T) -> Result<()> {
        Err(virtio_drivers::Error::ConfigSpaceTooSmall)
    }
}

/// Buffers that stay where they are, of a frame with its header or of a page.
type Buffers = Vec<Box<[u8; BLOCK]>>;

fn buffers(count: usize) -> Buffers {
    (0..count).map(|_| Box::new([0; BLOCK])).collect()
}

/// The queue by itself: chains of one descriptor.
#[derive(Debug)]
pub struct Queue {
    wires: Wires,
    queue: VirtQueue<Direct, SIZE>,
    buffers: Buffers,
}

impl Default for Queue {
    fn default() -> Self {
        let mut wires = Wires::new(DeviceType::Network);
        let queue = VirtQueue::new(&mut wires, 0, false, true).expect("a queue");
        Self { wires, queue, buffers: buffers(SIZE) }
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn virtio_queue_begin(
    queue: &mut VirtQueue<Direct, SIZE>,
    wires: &mut Wires,
    buffers: &Buffers,
    tokens: &mut [u16],
) {
    for (token, buffer) in tokens.iter_mut().zip(buffers) {
        // SAFETY: the buffers stay as they are until `virtio_queue_end`.
        *token = unsafe { queue.add(&[&buffer[..]], &mut []) }.expect("room");
        if queue.should_notify() {
            wires.notify(0);
        }
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn virtio_queue_end(queue: &mut VirtQueue<Direct, SIZE>, buffers: &Buffers, tokens: &[u16]) {
    for (token, buffer) in tokens.iter().zip(buffers) {
        // SAFETY: the buffer that was given with the token.
        unsafe { queue.pop_used(*token, &[&buffer[..]], &mut []) }.expect("answered");
    }
}

impl Turns for Queue {
    fn turn(&mut self, depth: usize) {
        let mut tokens = [0; SIZE];
        let tokens = &mut tokens[..depth];
        virtio_queue_begin(&mut self.queue, &mut self.wires, &self.buffers, tokens);
        assert_eq!(self.wires.serve(0, 0, |_| {}), depth);
        virtio_queue_end(&mut self.queue, &self.buffers, tokens);
    }
}

/// Frames that are sent, of `len` bytes with their header.
pub struct Send<H: Hal> {
    wires: Wires,
    card: VirtIONetRaw<H, Wires, SIZE>,
    buffers: Buffers,
    len: usize,
}

/// The queues of a card.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Of the header before a frame.
const HEADER: usize = 12;

impl<H: Hal> Send<H> {
    pub fn new(len: usize) -> Self {
        let wires = Wires::new(DeviceType::Network);
        let card = VirtIONetRaw::new(wires.clone()).expect("a card");
        Self { wires, card, buffers: buffers(SIZE), len: len + HEADER }
    }
}

macro_rules! send {
    ($hal:ty, $begin:ident, $end:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        fn $begin(
            card: &mut VirtIONetRaw<$hal, Wires, SIZE>,
            buffers: &Buffers,
            len: usize,
            tokens: &mut [u16],
        ) {
            for (token, buffer) in tokens.iter_mut().zip(buffers) {
                // SAFETY: the buffers stay as they are until they are sent.
                *token = unsafe { card.transmit_begin(&buffer[..len]) }.expect("room");
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        fn $end(card: &mut VirtIONetRaw<$hal, Wires, SIZE>, buffers: &Buffers, len: usize, tokens: &[u16]) {
            for (token, buffer) in tokens.iter().zip(buffers) {
                // SAFETY: the buffer that was given with the token.
                unsafe { card.transmit_complete(*token, &buffer[..len]) }.expect("sent");
            }
        }

        impl Turns for Send<$hal> {
            fn turn(&mut self, depth: usize) {
                let mut tokens = [0; SIZE];
                let tokens = &mut tokens[..depth];
                $begin(&mut self.card, &self.buffers, self.len, tokens);
                assert_eq!(self.wires.serve(TRANSMIT, 0, |_| {}), depth);
                $end(&mut self.card, &self.buffers, self.len, tokens);
            }
        }
    };
}
send!(Direct, virtio_send_begin, virtio_send_end);
send!(Copied, virtio_copy_begin, virtio_copy_end);

/// Frames that arrive.
pub struct Receive {
    wires: Wires,
    card: VirtIONetRaw<Direct, Wires, SIZE>,
    buffers: Buffers,
    /// Which buffer was given with a token.
    owners: [usize; SIZE],
}

impl Receive {
    /// With as many buffers as are answered at once.
    pub fn new(depth: usize) -> Self {
        let wires = Wires::new(DeviceType::Network);
        let mut card = VirtIONetRaw::new(wires.clone()).expect("a card");
        let mut buffers = buffers(depth);
        let mut owners = [0; SIZE];
        for (index, buffer) in buffers.iter_mut().enumerate() {
            // SAFETY: the buffers stay until the card is gone.
            let token = unsafe { card.receive_begin(&mut buffer[..]) }.expect("room");
            owners[usize::from(token)] = index;
        }
        Self { wires, card, buffers, owners }
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn virtio_receive(
    card: &mut VirtIONetRaw<Direct, Wires, SIZE>,
    buffers: &mut Buffers,
    owners: &mut [usize; SIZE],
) -> usize {
    let mut bytes = 0;
    while let Some(token) = card.poll_receive() {
        let owner = owners[usize::from(token)];
        let buffer = &mut buffers[owner][..];
        // SAFETY: the buffer that was given with the token.
        bytes += unsafe { card.receive_complete(token, buffer) }.expect("a frame").1;
        // SAFETY: the buffer is not used until it is filled again.
        let token = unsafe { card.receive_begin(buffer) }.expect("room");
        owners[usize::from(token)] = owner;
    }
    bytes
}

impl Turns for Receive {
    fn turn(&mut self, depth: usize) {
        assert_eq!(self.wires.serve(RECEIVE, 1514 + HEADER as u32, |_| {}), depth);
        assert_eq!(virtio_receive(&mut self.card, &mut self.buffers, &mut self.owners), 1514 * depth);
    }
}

/// Blocks that are read.
pub struct Read {
    wires: Wires,
    disk: VirtIOBlk<Direct, Wires>,
    buffers: Buffers,
    requests: Vec<(BlkReq, BlkResp)>,
    block: usize,
}

impl Read {
    pub fn new(depth: usize) -> Self {
        let wires = Wires::new(DeviceType::Block);
        let disk = VirtIOBlk::new(wires.clone()).expect("a disk");
        let requests = (0..depth).map(|_| Default::default()).collect();
        Self { wires, disk, buffers: buffers(depth), requests, block: 0 }
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn virtio_read_begin(
    disk: &mut VirtIOBlk<Direct, Wires>,
    block: usize,
    buffers: &mut Buffers,
    requests: &mut [(BlkReq, BlkResp)],
    tokens: &mut [u16],
) {
    for (index, token) in tokens.iter_mut().enumerate() {
        let (request, response) = &mut requests[index];
        // SAFETY: the buffers stay as they are until `virtio_read_end`.
        *token =
            unsafe { disk.read_blocks_nb(block + index * 16, request, &mut buffers[index][..], response) }
                .expect("room");
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn virtio_read_end(
    disk: &mut VirtIOBlk<Direct, Wires>,
    buffers: &mut Buffers,
    requests: &mut [(BlkReq, BlkResp)],
    tokens: &[u16],
) {
    for (index, token) in tokens.iter().enumerate() {
        let (request, response) = &mut requests[index];
        // SAFETY: what was given with the token.
        unsafe { disk.complete_read_blocks(*token, request, &mut buffers[index][..], response) }
            .expect("read");
    }
}

impl Turns for Read {
    fn turn(&mut self, depth: usize) {
        let mut tokens = [0; SIZE];
        let tokens = &mut tokens[..depth];
        virtio_read_begin(&mut self.disk, self.block, &mut self.buffers, &mut self.requests, tokens);
        // SAFETY: the last buffer of a chain is for the status.
        assert_eq!(self.wires.serve(0, BLOCK as u32 + 1, |status| unsafe { status.write(0) }), depth);
        virtio_read_end(&mut self.disk, &mut self.buffers, &mut self.requests, tokens);
        self.block = (self.block + 4096) % (1 << 20);
    }
}

impl<H: Hal> fmt::Debug for Send<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Send").field("wires", &self.wires).finish_non_exhaustive()
    }
}

impl fmt::Debug for Receive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receive").field("wires", &self.wires).finish_non_exhaustive()
    }
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Read").field("wires", &self.wires).finish_non_exhaustive()
    }
}
