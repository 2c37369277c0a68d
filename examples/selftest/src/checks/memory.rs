//! The layout of the domain's memory: pages go, come and move.
#![allow(unsafe_code, reason = "changes what lies behind an address")]

use core::ptr::NonNull;

use check_report::{Failure, Report, ensure};
use xen_hypercall::memory::{self, MemFlags, MemoryRange, PhysmapSpace};
use xen_hypercall::{DomId, Errno, Gfn, GrantRoom, Page, PageMemory};
use xen_rt::Kernel;

use super::calls::NOBODY;
use super::{ARM, Domain};

/// A page of the heap whose memory may be taken away and given anew.
struct Victim {
    kernel: &'static Kernel,
    page: NonNull<Page>,
}

impl Victim {
    fn new(kernel: &'static Kernel, byte: u8) -> Result<Self, Failure> {
        let page = kernel.alloc_pages(1).ok_or(Failure("no page".into()))?;
        let victim = Self { kernel, page };
        // SAFETY: the page is this value's alone.
        unsafe { page.cast::<u8>().write_volatile(byte) };
        Ok(victim)
    }

    fn gfn(&self) -> Gfn {
        self.kernel.gfn(self.page)
    }

    /// Whatever memory is there now.
    fn first_byte(&self) -> u8 {
        // SAFETY: callers ask when there is memory at the frame.
        unsafe { self.page.cast::<u8>().read_volatile() }
    }

    /// Gets fresh memory where there is none.
    fn fill(&self) -> Result<(), Failure> {
        // SAFETY: callers took the memory away, and nobody else knows the page.
        let done = unsafe { memory::populate_physmap(self.kernel, &mut [self.gfn()], 0, MemFlags::NONE) }?;
        ensure!(done == 1, "no fresh memory for {}", self.gfn());
        Ok(())
    }

    /// Callers see to it that there is memory at the frame again.
    fn free(self) {
        // SAFETY: allocated by `new`; this is its last use.
        unsafe { self.kernel.free_pages(self.page, 1) };
    }
}

pub(super) fn run(domain: &Domain, own: DomId, report: &mut Report) {
    let xen = domain.kernel;
    report.check("memory/reservations", || {
        let (now, most) =
            (memory::current_reservation(xen, DomId::SELF)?, memory::maximum_reservation(xen, DomId::SELF)?);
        ensure!(now > 1000 && now <= most, "{now} pages of at most {most}");
        let (highest, all) = (memory::maximum_gpfn(xen, DomId::SELF)?, memory::maximum_ram_page(xen)?);
        ensure!(highest > 1000 && all > 1000, "highest frame {highest:#x}, pages of the machine {all:#x}");
        Ok(())
    });
    let dom0 = DomId(0);
    report.privileged(
        domain.first,
        "memory/current-reservation-dom0",
        memory::current_reservation(xen, dom0),
    );
    report.privileged(
        domain.first,
        "memory/maximum-reservation-dom0",
        memory::maximum_reservation(xen, dom0),
    );
    report.privileged(domain.first, "memory/maximum-gpfn-dom0", memory::maximum_gpfn(xen, dom0));
    report.refused("memory/reservation-nobody", memory::current_reservation(xen, NOBODY), Errno::ESRCH);
    let mut ranges = [MemoryRange::default(); 64];
    let map = memory::memory_map(xen, &mut ranges);
    if ARM {
        // The device tree has it.
        report.refused("memory/map", map, Errno::ENOSYS);
    } else {
        report.check("memory/map", || {
            let count = map?;
            let ram: u64 =
                ranges.iter().take(count).filter(|range| range.kind == 1).map(|range| range.size).sum();
            ensure!(ram >= 4 << 20, "{count} ranges with {ram} bytes of RAM");
            Ok(())
        });
    }
    report.check("memory/balloon", || {
        let page = Victim::new(xen, 7)?;
        let before = memory::current_reservation(xen, DomId::SELF)?;
        // SAFETY: the page is ours alone, and is not used until it has memory again.
        let gone = unsafe { memory::decrease_reservation(xen, &[page.gfn()], 0) }?;
        let between = memory::current_reservation(xen, DomId::SELF)?;
        page.fill()?;
        let after = memory::current_reservation(xen, DomId::SELF)?;
        ensure!(gone == 1 && between == before - 1 && after == before, "{before} pages, {between}, {after}");
        // Whatever is there, it is memory.
        page.first_byte();
        page.free();
        Ok(())
    });
    if ARM {
        does_not_move(xen, report)
    } else {
        moves(xen, report)
    }
    foreign(domain, own, report);
    report.check("memory/remove", || {
        let page = Victim::new(xen, 5)?;
        // SAFETY: the page is ours alone, and is not used until it has memory again.
        unsafe { memory::remove_from_physmap(xen, page.gfn()) }?;
        page.fill()?;
        page.free();
        Ok(())
    });
    let hole = match hole(xen) {
        Ok(hole) => hole,
        Err(why) => return report.check("memory/hole", || Err(why)),
    };
    // SAFETY: there is nothing at this frame.
    let removed = unsafe { memory::remove_from_physmap(xen, hole) };
    report.refused("memory/remove-hole", removed, Errno::ENOENT);
}

/// On Arm a page stays where it is.
fn does_not_move(xen: &'static Kernel, report: &mut Report) {
    let (from, to) = match (Victim::new(xen, 1), hole(xen)) {
        (Ok(from), Ok(to)) => (from, to),
        (Err(why), _) | (_, Err(why)) => return report.check("memory/move", || Err(why)),
    };
    // SAFETY: Xen does not know how.
    let moved = unsafe { memory::add_to_physmap(xen, PhysmapSpace::GMFN, from.gfn().0, to) };
    report.refused("memory/move", moved, Errno::ENOSYS);
    from.free();
}

fn moves(xen: &'static Kernel, report: &mut Report) {
    report.check("memory/move", || {
        let (from, to) = (Victim::new(xen, 1)?, Victim::new(xen, 2)?);
        // SAFETY: both pages are ours alone; what was at `to` goes to Xen, and `from` is filled before it is used.
        unsafe { memory::add_to_physmap(xen, PhysmapSpace::GMFN, from.gfn().0, to.gfn()) }?;
        ensure!(to.first_byte() == 1, "the page did not move: {}", to.first_byte());
        from.fill()?;
        from.free();
        to.free();
        Ok(())
    });
    report.check("memory/move-batch", || {
        let (from, to) = (Victim::new(xen, 3)?, Victim::new(xen, 4)?);
        let (indexes, frames, mut results) = ([from.gfn().0], [to.gfn()], [1]);
        let space = PhysmapSpace::GMFN;
        // SAFETY: as above.
        unsafe { memory::add_to_physmap_batch(xen, space, None, &indexes, &frames, &mut results) }?;
        ensure!(results == [0] && to.first_byte() == 3, "status {results:?}, {} there", to.first_byte());
        from.fill()?;
        from.free();
        to.free();
        Ok(())
    });
}

/// A frame at which nothing is, for good.
pub(super) fn hole(xen: &Kernel) -> Result<Gfn, Failure> {
    xen.reserve_room(1).ok_or(Failure("no room".into()))
}

/// Pages of others that nobody granted: for the first domain alone, and from domains that are there.
fn foreign(domain: &Domain, own: DomId, report: &mut Report) {
    let (other, nobody) = if domain.first { (NOBODY, Errno::ESRCH) } else { (DomId(0), Errno::EPERM) };
    // Xen's pages are to be had, but this is none of them.
    let not_xens = if domain.first { Errno::EINVAL } else { Errno::EPERM };
    let hole = match hole(domain.kernel) {
        Ok(hole) => hole,
        Err(why) => return report.check("memory/hole", || Err(why)),
    };
    for (name, owner, wanted) in [
        ("memory/map-foreign", other, nobody),
        ("memory/map-foreign-own", own, if ARM { Errno::ESRCH } else { Errno::EPERM }),
        ("memory/map-foreign-self", DomId::SELF, if ARM { Errno::EINVAL } else { nobody }),
        ("memory/map-foreign-of-xen", DomId::XEN, not_xens),
    ] {
        let (frames, mut results) = ([hole], [0]);
        let (xen, space) = (domain.kernel, PhysmapSpace::GMFN_FOREIGN);
        // SAFETY: there is nothing at this frame, and Xen puts nothing there.
        let mapped =
            unsafe { memory::add_to_physmap_batch(xen, space, Some(owner), &[0x100], &frames, &mut results) };
        // Refused as a whole, or page by page.
        report.refused(name, mapped.and(Errno::check(results[0] as isize)), wanted);
    }
}
