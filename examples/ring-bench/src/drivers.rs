//! The same with this project's drivers, whose far side are their mocks. What is measured are the functions with names,
//! without what they call outside of the drivers: a hypercall is not counted.
#![allow(unsafe_code, reason = "is a platform, which owns memory")]

use std::future::Future;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};
use std::time::Duration;

use xen_blkfront::mock::{MockBlkback, Options as DiskOptions};
use xen_blkfront::{BlkFront, Disk, Drive, Piece, Ticket};
use xen_evtchn::EventChannels;
use xen_gnttab::{Access, GrantTable};
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{
    DomId, Domain, Gfn, Hypercall, HypercallNr, Page as Memory, PageMemory, SpecialPages, VcpuId, Wait,
};
use xen_netfront::mock::{MockNetback, MockSwitch, Options as CardOptions};
use xen_netfront::{FramePage, NetFront, TxMeta};
use xen_ring::{Back, Front};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::MockXenstored;

use crate::rust::{Net, Shared};
use crate::{NetReq, Page, Turns};

/// The machine as the guest sees it; its hypercalls can be told from the rest.
#[derive(Clone, Debug)]
pub struct Guest(MockDomain);

/// Whether something is measured.
static MEASURED: AtomicBool = AtomicBool::new(false);

/// Not counted: callgrind stops here until it returns.
///
/// # Safety
/// As [`Hypercall::hypercall`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe fn uncounted_hypercall(guest: &MockDomain, nr: HypercallNr, args: [usize; 5]) -> isize {
    // SAFETY: the caller's promise.
    std::hint::black_box(unsafe { guest.hypercall(nr, args) })
}

// SAFETY: the mock's domain does what it promises.
unsafe impl Hypercall for Guest {
    #[inline]
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
        if MEASURED.load(Ordering::Relaxed) {
            // SAFETY: the caller's promise.
            unsafe { uncounted_hypercall(&self.0, nr, args) }
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.0.hypercall(nr, args) }
        }
    }
}

// SAFETY: the mock's domain does what it promises.
unsafe impl PageMemory for Guest {
    fn alloc_pages(&self, count: usize) -> Option<NonNull<Memory>> {
        self.0.alloc_pages(count)
    }
    unsafe fn free_pages(&self, first: NonNull<Memory>, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.0.free_pages(first, count) }
    }
    fn gfn(&self, page: NonNull<Memory>) -> Gfn {
        self.0.gfn(page)
    }
}

// SAFETY: the mock's domain does what it promises.
unsafe impl SpecialPages for Guest {
    unsafe fn map_special(&self, gfn: Gfn, count: usize) -> Option<NonNull<Memory>> {
        // SAFETY: the caller's promise.
        unsafe { self.0.map_special(gfn, count) }
    }
}

impl Wait for Guest {
    fn now(&self) -> Duration {
        self.0.now()
    }
    fn wait(&self, deadline: Option<Duration>, is_due: &dyn Fn() -> bool) {
        self.0.wait(deadline, is_due);
    }
}

/// A guest with a card and a disk, for the rest of the process.
pub(crate) struct Machine {
    xen: MockXen,
    pub(crate) switch: MockSwitch,
    grants: &'static GrantTable<Guest>,
    events: &'static EventChannels<Guest>,
    xs: Xenstore<'static, Guest>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let xen = MockXen::new();
        xen_evtchn::mock::install(&xen);
        xen_gnttab::mock::install(&xen);
        let store = MockXenstored::new(&xen);
        let guest = xen.domain(DomId(1));
        store.connect(&guest);
        let switch = MockSwitch::new(&xen);
        let _ = MockNetback::new(&switch, &store, &guest, 0, CardOptions::default());
        let disk = DiskOptions { sectors: 1 << 16, ..DiskOptions::default() };
        let _ = MockBlkback::new(&store, &guest, 51712, disk);
        // SAFETY: the guest has no other kernel.
        let token = unsafe { Domain::new(Guest(guest)) }.expect("a token");
        let events = EventChannels::new(&token).expect("event channels");
        let events: &'static _ = Box::leak(Box::new(events));
        let grants: &'static _ = Box::leak(Box::new(GrantTable::new(&token).expect("grants")));
        let xs = Xenstore::new(events).expect("xenstore");
        Self { xen, switch, grants, events, xs }
    }

    pub(crate) fn card(&mut self) -> NetFront<'static, Guest> {
        let soon = self.xs.now() + Duration::from_secs(5);
        NetFront::connect(&mut self.xs, self.events, self.grants, 0, soon).expect("a card")
    }

    fn disk(&mut self) -> BlkFront<'static, Guest> {
        let soon = self.xs.now() + Duration::from_secs(5);
        BlkFront::connect_first(&mut self.xs, self.events, self.grants, soon).expect("a disk")
    }

    fn pages(&self, count: usize, access: Access) -> Vec<FramePage<'static, Guest>> {
        let share = || self.grants.share(DomId(0), access).expect("a page");
        (0..count).map(|_| FramePage::new(share(), 0, 1514)).collect()
    }

    /// Lets the far side act.
    pub(crate) fn run(&self) {
        self.xen.run_until_idle(100_000);
    }
}

/// Runs what is measured.
pub(crate) fn measured<R>(f: impl FnOnce() -> R) -> R {
    MEASURED.store(true, Ordering::Relaxed);
    let result = f();
    MEASURED.store(false, Ordering::Relaxed);
    result
}

/// The ring by itself, with a record of what is under way: a buffer goes with each request, and its number comes back.
#[derive(Debug)]
pub struct Queue {
    front: Front<Net, Shared>,
    back: Back<Net, Shared>,
    ids: Ids,
}

/// Numbers that are free, and those that are under way.
#[derive(Debug)]
struct Ids {
    free: [u16; 256],
    count: usize,
    away: [bool; 256],
}

impl Default for Queue {
    fn default() -> Self {
        let page = NonNull::from(Box::leak(Box::new(Page([0; 4096]))));
        // SAFETY: the page stays for the rest of the process.
        let ends = unsafe { crate::rust::Rings::<Net>::new(page, 0) };
        let ids = Ids { free: std::array::from_fn(|index| index as u16), count: 256, away: [false; 256] };
        Self { front: ends.front, back: ends.back, ids }
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn xen_queue_begin(front: &mut Front<Net, Shared>, ids: &mut Ids, grefs: &[u32]) -> u64 {
    for gref in grefs {
        ids.count = ids.count.checked_sub(1).expect("a number");
        let id = ids.free[ids.count];
        let request: NetReq = [*gref, 0, u32::from(id) | 1514 << 16];
        front.push(&request).expect("room");
        ids.away[usize::from(id)] = true;
    }
    front.publish().expect("the peer keeps to the protocol").into()
}

#[unsafe(no_mangle)]
#[inline(never)]
fn xen_queue_end(front: &mut Front<Net, Shared>, ids: &mut Ids) -> usize {
    let (mut response, mut count) = ([0; 2], 0);
    while front.pop_into(&mut response).expect("the peer keeps to the protocol") {
        let away = ids.away.get_mut(usize::from(response[0])).filter(|away| **away);
        *away.expect("under way") = false;
        ids.free[ids.count] = response[0];
        ids.count += 1;
        count += 1;
    }
    count
}

impl Turns for Queue {
    fn turn(&mut self, depth: usize) {
        xen_queue_begin(&mut self.front, &mut self.ids, &[7; 256][..depth]);
        while let Some(request) = self.back.pop().expect("a request") {
            self.back.push(&[request[2] as u16, 0]).expect("room");
        }
        self.back.publish().expect("a ring");
        self.back.arm().expect("a ring");
        assert_eq!(xen_queue_end(&mut self.front, &mut self.ids), depth);
    }
}

/// Frames that are sent: pages that are handed over, or copies.
pub struct Send {
    machine: Machine,
    card: NetFront<'static, Guest>,
    frames: Vec<FramePage<'static, Guest>>,
    copied: Option<Vec<u8>>,
}

impl Send {
    pub fn new(depth: usize, copied: Option<usize>) -> Self {
        let mut machine = Machine::new();
        let card = machine.card();
        let frames = machine.pages(depth, Access::ReadOnly);
        Self { machine, card, frames, copied: copied.map(|len| vec![0x55; len]) }
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn xen_send(card: &mut NetFront<'static, Guest>, frames: &mut [FramePage<'static, Guest>]) {
    for frame in frames {
        card.transmit_pages(std::slice::from_mut(frame), TxMeta::default()).expect("room");
    }
    card.publish().expect("the backend keeps to the protocol");
}

#[unsafe(no_mangle)]
#[inline(never)]
fn xen_copy(card: &mut NetFront<'static, Guest>, frame: &[u8], count: usize) {
    for _ in 0..count {
        card.transmit(frame).expect("room");
    }
    card.publish().expect("the backend keeps to the protocol");
}

impl Turns for Send {
    fn turn(&mut self, depth: usize) {
        match &self.copied {
            Some(frame) => measured(|| xen_copy(&mut self.card, frame, depth)),
            None => {
                let frames = &mut self.frames[..depth];
                for frame in &mut *frames {
                    // To everybody.
                    frame.page.write_bytes(0, &[0xff; 6]).expect("within a page");
                }
                measured(|| xen_send(&mut self.card, frames));
            }
        }
        self.machine.run();
        let arrived = std::iter::from_fn(|| self.machine.switch.receive()).count();
        assert_eq!(arrived, depth);
    }
}

/// Frames that arrive in pages that are handed over.
pub struct Receive {
    machine: Machine,
    card: NetFront<'static, Guest>,
    spare: Vec<FramePage<'static, Guest>>,
    frame: Vec<u8>,
}

impl Default for Receive {
    fn default() -> Self {
        let mut machine = Machine::new();
        let card = machine.card();
        let spare = machine.pages(1, Access::ReadWrite);
        let mut frame = vec![0x55; 1514];
        frame[..6].copy_from_slice(&card.mac().0);
        Self { machine, card, spare, frame }
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn xen_receive(card: &mut NetFront<'static, Guest>, spare: &mut [FramePage<'static, Guest>]) -> usize {
    let mut bytes = 0;
    while let Some(meta) = card.receive_pages(spare).expect("the backend keeps to the protocol") {
        bytes += meta.len;
    }
    card.publish().expect("the backend keeps to the protocol");
    bytes
}

impl Turns for Receive {
    fn turn(&mut self, depth: usize) {
        for _ in 0..depth {
            self.machine.switch.send(self.frame.clone());
        }
        self.machine.run();
        assert_eq!(measured(|| xen_receive(&mut self.card, &mut self.spare)), 1514 * depth);
    }
}

/// Frames that arrive, and are copied.
#[derive(Default)]
pub struct Take {
    inner: Receive,
}

#[unsafe(no_mangle)]
#[inline(never)]
fn xen_take(card: &mut NetFront<'static, Guest>, buf: &mut [u8]) -> usize {
    let mut bytes = 0;
    loop {
        while let Some(len) = card.receive(buf).expect("the backend keeps to the protocol") {
            bytes += len;
        }
        if !card.arm().expect("the backend keeps to the protocol") {
            return bytes;
        }
    }
}

impl Turns for Take {
    fn turn(&mut self, depth: usize) {
        let Receive { machine, card, frame, .. } = &mut self.inner;
        for _ in 0..depth {
            machine.switch.send(frame[..60].to_vec());
        }
        machine.run();
        assert_eq!(measured(|| xen_take(card, &mut [0; 1514])), 60 * depth);
    }
}

impl std::fmt::Debug for Take {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

/// Blocks that are read into pages that are lent.
pub struct Read {
    machine: Machine,
    disk: BlkFront<'static, Guest>,
    pieces: Vec<Option<Piece<'static, Guest>>>,
    tickets: Vec<Option<Ticket>>,
    sector: u64,
}

impl Read {
    pub fn new(depth: usize) -> Self {
        let mut machine = Machine::new();
        let disk = machine.disk();
        let pages = machine.pages(depth, Access::ReadWrite).into_iter();
        let pieces = pages.map(|part| Some(Piece::whole(part.page))).collect();
        Self { machine, disk, pieces, tickets: vec![None; depth], sector: 0 }
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn xen_read_begin(
    disk: &mut BlkFront<'static, Guest>,
    mut sector: u64,
    pieces: &mut [Option<Piece<'static, Guest>>],
    tickets: &mut [Option<Ticket>],
) {
    for (piece, ticket) in pieces.iter_mut().zip(tickets) {
        // With a gap, so that they are not merged.
        *ticket = Some(disk.submit_read_into(sector, std::slice::from_mut(piece)).expect("room"));
        sector += 16;
    }
    disk.publish().expect("the backend keeps to the protocol");
}

#[unsafe(no_mangle)]
#[inline(never)]
fn xen_read_end(
    disk: &mut BlkFront<'static, Guest>,
    pieces: &mut [Option<Piece<'static, Guest>>],
    tickets: &[Option<Ticket>],
) {
    disk.poll().expect("the backend keeps to the protocol");
    for (place, ticket) in pieces.iter_mut().zip(tickets) {
        let ticket = ticket.expect("of the beginning");
        disk.take_pages(ticket, std::slice::from_mut(place)).expect("answered").expect("read");
    }
}

impl Turns for Read {
    fn turn(&mut self, depth: usize) {
        let (pieces, tickets) = (&mut self.pieces[..depth], &mut self.tickets[..depth]);
        measured(|| xen_read_begin(&mut self.disk, self.sector, pieces, tickets));
        self.machine.run();
        measured(|| xen_read_end(&mut self.disk, pieces, tickets));
        assert!(pieces.iter().all(Option::is_some));
        self.sector = (self.sector + 4096) % (1 << 15);
    }
}

/// The same by tasks of an executor: each reads a block, and one drives the disk.
pub struct Tasks {
    machine: Machine,
    disk: &'static Disk<'static, Guest>,
    drive: Drive<'static, 'static, Guest>,
    pieces: Vec<[Option<Piece<'static, Guest>>; 1]>,
    woken: [&'static Flag; DEPTH + 1],
    sector: u64,
}

/// A call that is under way.
type Call<'c> = dyn Future<Output = Result<(), xen_blkfront::Error>> + 'c;

/// Tasks of the largest run.
const DEPTH: usize = 4;

/// Whether a task is to be polled: what an executor has in its place is its own.
#[derive(Debug, Default)]
struct Flag(AtomicBool);

static WAKER: RawWakerVTable = RawWakerVTable::new(
    |flag| RawWaker::new(flag, &WAKER),
    |flag| wake_flag(flag),
    |flag| wake_flag(flag),
    |_| {},
);

fn wake_flag(flag: *const ()) {
    // SAFETY: of a flag that stays for the rest of the process.
    unsafe { &*flag.cast::<Flag>() }.0.store(true, Ordering::Relaxed);
}

impl Flag {
    fn waker(&'static self) -> Waker {
        let this: *const Self = self;
        // SAFETY: the functions of the table do what they are to, and the flag stays for the rest of the process.
        unsafe { Waker::from_raw(RawWaker::new(this.cast(), &WAKER)) }
    }

    fn take(&self) -> bool {
        let woken = self.0.load(Ordering::Relaxed);
        self.0.store(false, Ordering::Relaxed);
        woken
    }
}

impl Tasks {
    pub fn new(depth: usize) -> Self {
        let mut machine = Machine::new();
        let disk: &'static _ = Box::leak(Box::new(Disk::of(machine.disk())));
        let pages = machine.pages(depth, Access::ReadWrite).into_iter();
        let pieces = pages.map(|part| [Some(Piece::whole(part.page))]).collect();
        let woken = std::array::from_fn(|_| &*Box::leak(Box::<Flag>::default()));
        let mut tasks = Self { machine, disk, drive: disk.drive(), pieces, woken, sector: 0 };
        let _ = run(tasks.woken[DEPTH], &mut tasks.drive, xen_tasks_drive);
        tasks
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn xen_tasks_drive(drive: &mut Drive<'static, 'static, Guest>, cx: &mut Context<'_>) -> bool {
    Pin::new(drive).poll(cx).is_pending()
}

#[unsafe(no_mangle)]
#[inline(never)]
fn xen_tasks_read(read: Pin<&mut Call<'_>>, cx: &mut Context<'_>) -> bool {
    read.poll(cx) == Poll::Ready(Ok(()))
}

/// Polls a task as its executor does.
fn run<T: ?Sized>(flag: &'static Flag, task: &mut T, poll: fn(&mut T, &mut Context<'_>) -> bool) -> bool {
    flag.take();
    let waker = flag.waker();
    let mut cx = Context::from_waker(&waker);
    measured(|| poll(task, &mut cx))
}

impl Turns for Tasks {
    fn turn(&mut self, depth: usize) {
        let (disk, machine) = (self.disk, &self.machine);
        let mut sector = self.sector;
        let mut reads: Vec<Pin<Box<Call<'_>>>> = self.pieces[..depth]
            .iter_mut()
            .map(|pieces| {
                // With a gap, so that they are not merged.
                sector += 16;
                Box::pin(disk.handle().read_into(sector, pieces)) as Pin<Box<Call<'_>>>
            })
            .collect();
        for (read, flag) in reads.iter_mut().zip(self.woken) {
            assert!(!run(flag, read, |read, cx| xen_tasks_read(read.as_mut(), cx)));
        }
        let driver = self.woken[DEPTH];
        assert!(driver.take(), "there is something to show");
        assert!(run(driver, &mut self.drive, xen_tasks_drive));
        machine.run();
        machine.events.dispatch(VcpuId(0));
        assert!(driver.take(), "there is something to take");
        assert!(run(driver, &mut self.drive, xen_tasks_drive));
        for (read, flag) in reads.iter_mut().zip(self.woken) {
            assert!(flag.take(), "it has a result");
            assert!(run(flag, read, |read, cx| xen_tasks_read(read.as_mut(), cx)));
        }
        drop(reads);
        assert!(self.pieces.iter().flatten().all(Option::is_some));
        self.sector = (self.sector + 4096) % (1 << 15);
    }
}

impl std::fmt::Debug for Tasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.disk.fmt(f)
    }
}

impl std::fmt::Debug for Send {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.card.fmt(f)
    }
}

impl std::fmt::Debug for Receive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.card.fmt(f)
    }
}

impl std::fmt::Debug for Read {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.disk.fmt(f)
    }
}
