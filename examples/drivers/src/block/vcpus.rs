//! A queue of the disk on each of two vCPUs, both at work at once.

use alloc::vec;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, Ordering};

use check_report::{Failure, Report, ensure};
use heapless::mpmc;
use xen_blkfront::{BlkQueue, Error, Ticket};
use xen_hypercall::Wait;
use xen_rt::Kernel;
use xen_rt::smp::{Vcpu, Vcpus};

use super::model::SECTORS;
use super::{Disk, life};
use crate::pattern::{SECTOR, fill};
use crate::place::{PATIENCE, Place, Xen};

type Queue = BlkQueue<'static, Xen>;

/// Where each has sectors of its own, behind those that the model looks after.
const OURS: u64 = 2 * SECTORS;
const THEIRS: u64 = 3 * SECTORS;
/// What each writes and reads at least, and how many operations at once.
const ROUNDS: u32 = 100;
const DEPTH: usize = 8;

/// What vCPU 0 and the other have done so far.
static DONE: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
/// The queue, when the other is done with it.
static BACK: mpmc::Queue<(Queue, Result<(), Failure>), 2> = mpmc::Queue::new();

/// What either is given.
trait Drive {
    fn submit_read(&mut self, lba: u64, sectors: u64) -> Result<Ticket, Error>;
    fn submit_write(&mut self, lba: u64, data: &[u8]) -> Result<Ticket, Error>;
    fn wait(&mut self, ticket: Ticket, out: &mut [u8]) -> Result<(), Error>;
    fn flush(&mut self) -> Result<(), Error>;
}

macro_rules! drive {
    ($type:ty) => {
        impl Drive for $type {
            fn submit_read(&mut self, lba: u64, sectors: u64) -> Result<Ticket, Error> {
                <$type>::submit_read(self, lba, sectors)
            }

            fn submit_write(&mut self, lba: u64, data: &[u8]) -> Result<Ticket, Error> {
                <$type>::submit_write(self, lba, data)
            }

            fn wait(&mut self, ticket: Ticket, out: &mut [u8]) -> Result<(), Error> {
                <$type>::wait(self, ticket, out)
            }

            fn flush(&mut self) -> Result<(), Error> {
                <$type>::flush(self)
            }
        }
    };
}

drive!(Disk);
drive!(Queue);

pub(super) fn run(place: &Place, disk: &mut Disk, report: &mut Report) {
    const NAME: &str = "block/a-queue-on-each-vcpu";
    let mut others = None;
    report.check("block/start-vcpus", || {
        others = Some(Vcpus::start(place.guest)?);
        Ok(())
    });
    match others.as_ref().and_then(|vcpus| vcpus.first()) {
        None => report.lacking(NAME, "the domain has one vCPU"),
        Some(_) if disk.queues() == 1 => report.lacking(NAME, "the backend offers one queue"),
        Some(vcpu) => report.check(NAME, || both(place, disk, *vcpu)),
    }
}

fn both(place: &Place, disk: &mut Disk, vcpu: Vcpu) -> Result<(), Failure> {
    let (kernel, before) = (place.kernel, disk.stats());
    let queues = disk.queues();
    let mut queue = disk.take_queue(1)?;
    let channel = queue.channel().ok_or("it has no channel")?;
    channel.bind_vcpu(vcpu.id())?;
    vcpu.run(move || {
        let result = work(kernel, &mut queue, THEIRS, 1);
        let _ = BACK.enqueue((queue, result));
    })?;
    let own = work(kernel, disk, OURS, 0);
    let deadline = place.soon();
    let (mut queue, theirs) = loop {
        if let Some(back) = BACK.dequeue() {
            break back;
        }
        ensure!(kernel.now() < deadline, "the other vCPU does not end");
        place.events.wait_since(place.events.seq(), Some(kernel.now() + life::TURN));
    };
    own?;
    theirs?;
    // What the one has written the other reads.
    queue.channel().ok_or("it has no channel")?.bind_vcpu(kernel.vcpu())?;
    let (mut first, mut second) = (vec![0; 64 * SECTOR], vec![0; 64 * SECTOR]);
    for lba in [OURS, THEIRS] {
        disk.read(lba, &mut first)?;
        queue.read(lba, &mut second)?;
        ensure!(first == second, "two contents at {lba}");
    }
    let through = queue.stats();
    ensure!(through.requests > u64::from(2 * ROUNDS), "{} requests through it", through.requests);
    ensure!(disk.queues() + 1 == queues, "{} queues without it", disk.queues());
    disk.put_queue(queue)?;
    let after = disk.stats();
    ensure!(disk.queues() == queues, "{} queues with it", disk.queues());
    let written = after.bytes_written - before.bytes_written;
    ensure!(written >= 2 * u64::from(ROUNDS) * SECTOR as u64, "{written} bytes were counted");
    // And the disk uses it as before.
    let tickets =
        (0..64).map(|index| disk.submit_read(OURS + index * 16, 1)).collect::<Result<vec::Vec<_>, _>>()?;
    tickets.into_iter().try_for_each(|ticket| Ok(disk.wait(ticket, &mut [0; SECTOR])?))
}

/// Writes, reads and compares, some operations at once, and flushes now and then: as often as it is meant to, and until the
/// other is at work as well.
fn work(kernel: &Kernel, disk: &mut impl Drive, base: u64, me: usize) -> Result<(), Failure> {
    let [own, other] = [DONE.get(me), DONE.get(1 - me)].map(|done| done.ok_or("there are two"));
    let (own, other, deadline) = (own?, other?, kernel.now() + PATIENCE);
    let mut data = vec![0; 64 * SECTOR];
    let mut right = data.clone();
    let mut round = 0;
    while round < ROUNDS || other.load(Ordering::Relaxed) == 0 {
        ensure!(kernel.now() < deadline, "the other vCPU does not begin");
        if round >= ROUNDS {
            spin_loop();
        }
        round += 1;
        let seed = (round % 250 + 1) as u8;
        let part = |index: usize| {
            let sectors = 1 + (round as u64 * 7 + index as u64 * 13) % 64;
            (base + (round as u64 * 3 + index as u64) % 32 * 64, sectors)
        };
        let mut tickets = heapless::Vec::<_, DEPTH>::new();
        for index in 0..DEPTH {
            let (lba, sectors) = part(index);
            let bytes = data.get_mut(..sectors as usize * SECTOR).unwrap_or_default();
            fill(lba, seed, bytes);
            let _ = tickets.push(disk.submit_write(lba, bytes)?);
        }
        for ticket in tickets {
            disk.wait(ticket, &mut [])?;
        }
        let mut tickets = heapless::Vec::<_, DEPTH>::new();
        for index in 0..DEPTH {
            let (lba, sectors) = part(index);
            let _ = tickets.push(disk.submit_read(lba, sectors)?);
        }
        for (index, ticket) in tickets.into_iter().enumerate() {
            let (lba, sectors) = part(index);
            let len = sectors as usize * SECTOR;
            let (data, right) =
                (data.get_mut(..len).unwrap_or_default(), right.get_mut(..len).unwrap_or_default());
            disk.wait(ticket, data)?;
            fill(lba, seed, right);
            ensure!(data == right, "vCPU {}: another content at {lba}", kernel.vcpu().0);
        }
        if round % 10 == 0 {
            disk.flush()?;
        }
        own.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
