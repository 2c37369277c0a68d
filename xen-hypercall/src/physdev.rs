//! Interrupts of devices that a guest was given, as event channels (`physdev.h`).
//!
//! A *pirq* is the number by which guest and Xen name such an interrupt; `event::bind_pirq` gives it a port. PV guests,
//! and x86 HVM guests whose toolstack says so: an HVM or PVH guest of today uses its own interrupt controllers, and
//! everything here returns `ENOSYS`.
#![allow(unsafe_code, reason = "names the structure of each command")]

use crate::abi::*;
use crate::call::{Command, run};
use crate::{DomId, Errno, Gfn, Hypercall, HypercallNr};

macro_rules! commands {
    ($($name:ident = $cmd:ident;)*) => {$(
        // SAFETY: the command reads and fills this structure of `physdev.h`, and changes which interrupt goes where; it
        // touches no memory of the guest.
        unsafe impl Command for $name {
            const NR: HypercallNr = HypercallNr::PHYSDEV_OP;
            const CMD: usize = $cmd;
        }
    )*};
}

commands! {
    PhysdevEoi = PHYSDEVOP_EOI;
    PhysdevIrqStatusQuery = PHYSDEVOP_IRQ_STATUS_QUERY;
    PhysdevMapPirq = PHYSDEVOP_MAP_PIRQ;
    PhysdevUnmapPirq = PHYSDEVOP_UNMAP_PIRQ;
    PhysdevGetFreePirq = PHYSDEVOP_GET_FREE_PIRQ;
}

/// Signals the end of an interrupt, so that the line may interrupt again.
///
/// # Errors
/// `EINVAL` for a pirq out of range, `ENOSYS` for guests without pirqs.
pub fn eoi(xen: &(impl Hypercall + ?Sized), pirq: u32) -> Result<(), Errno> {
    run(xen, &mut PhysdevEoi { irq: pirq }).map(drop)
}

bitflags::bitflags! {
    /// What Xen says about an interrupt (`XENIRQSTAT_*`). Unknown bits are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct IrqStatus: u32 {
        /// The interrupt needs [`eoi`].
        const NEEDS_EOI = XENIRQSTAT_NEEDS_EOI;
        /// Other domains have the same interrupt.
        const SHARED = XENIRQSTAT_SHARED;
        const _ = !0;
    }
}

/// Asks about an interrupt.
///
/// # Errors
/// `EINVAL` for a pirq out of range, `ENOSYS` for guests without pirqs.
pub fn irq_status(xen: &(impl Hypercall + ?Sized), pirq: u32) -> Result<IrqStatus, Errno> {
    let mut argument = PhysdevIrqStatusQuery { irq: pirq, flags: 0 };
    run(xen, &mut argument)?;
    Ok(IrqStatus::from_bits_retain(argument.flags))
}

/// Where an interrupt comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Source {
    /// A line of the interrupt controllers, by its global number.
    Gsi(u32),
    /// A message of a PCI device.
    Msi {
        /// The device's segment.
        segment: u16,
        /// Its bus.
        bus: u8,
        /// Its device number, times 8, and function.
        devfn: u8,
        /// Which entry of its MSI-X table; 0 for plain MSI.
        entry: u16,
        /// The machine address of its MSI-X table; 0 for plain MSI.
        table: u64,
    },
    /// Several consecutive messages of a PCI device (plain MSI).
    MultiMsi {
        /// The device's segment.
        segment: u16,
        /// Its bus.
        bus: u8,
        /// Its device number, times 8, and function.
        devfn: u8,
        /// How many.
        count: u16,
    },
}

/// Gives an interrupt a pirq: the one asked for, or any. Returns the pirq, of several the first.
///
/// # Errors
/// `EPERM` for a device that is not this domain's, `EINVAL`, `ENOSPC` when there are no more, `ENOSYS` for guests
/// without pirqs.
pub fn map_pirq(xen: &(impl Hypercall + ?Sized), source: Source, pirq: Option<u32>) -> Result<u32, Errno> {
    let pirq = match pirq {
        Some(pirq) => i32::try_from(pirq).map_err(|_| Errno::EINVAL)?,
        None => -1,
    };
    let place =
        |segment: u16, bus: u8| i32::from_ne_bytes((u32::from(segment) << 16 | u32::from(bus)).to_ne_bytes());
    let base = PhysdevMapPirq { domid: DomId::SELF.0, pirq, index: -1, ..Default::default() };
    let mut argument = match source {
        Source::Gsi(gsi) => PhysdevMapPirq {
            r#type: MAP_PIRQ_TYPE_GSI,
            index: i32::try_from(gsi).map_err(|_| Errno::EINVAL)?,
            ..base
        },
        Source::Msi { segment, bus, devfn, entry, table } => PhysdevMapPirq {
            r#type: MAP_PIRQ_TYPE_MSI_SEG,
            bus: place(segment, bus),
            devfn: devfn.into(),
            entry_nr: entry.into(),
            table_base: table,
            ..base
        },
        Source::MultiMsi { segment, bus, devfn, count } => PhysdevMapPirq {
            r#type: MAP_PIRQ_TYPE_MULTI_MSI,
            bus: place(segment, bus),
            devfn: devfn.into(),
            entry_nr: count.into(),
            ..base
        },
    };
    run(xen, &mut argument)?;
    u32::try_from(argument.pirq).map_err(|_| Errno::EINVAL)
}

/// Takes a pirq away from its interrupt.
///
/// # Errors
/// `EINVAL` for one that has none, `ENOSYS` for guests without pirqs.
pub fn unmap_pirq(xen: &(impl Hypercall + ?Sized), pirq: u32) -> Result<(), Errno> {
    let pirq = i32::try_from(pirq).map_err(|_| Errno::EINVAL)?;
    run(xen, &mut PhysdevUnmapPirq { domid: DomId::SELF.0, pad0: 0, pirq }).map(drop)
}

/// A pirq that is free for an interrupt of a kind; HVM guests write it to the device for messages. Since Xen 4.1.
///
/// # Errors
/// `ENOSPC` when there are no more, `ENOSYS` for guests without pirqs.
pub fn free_pirq(xen: &(impl Hypercall + ?Sized), source: Source) -> Result<u32, Errno> {
    let r#type = if matches!(source, Source::Gsi(_)) { MAP_PIRQ_TYPE_GSI } else { MAP_PIRQ_TYPE_MSI };
    let mut argument = PhysdevGetFreePirq { r#type, pirq: 0 };
    run(xen, &mut argument)?;
    Ok(argument.pirq)
}

/// Gives Xen a page in which it sets a bit for each pirq that needs [`eoi`], in place of [`irq_status`]. PV only, since Xen
/// 4.1.
///
/// # Errors
/// `EBUSY` when there is such a page already, `EINVAL` for a frame that is not the guest's, `ENOSYS` for others than
/// PV guests.
///
/// # Safety
/// Xen writes to the page until the domain ends. Nobody uses it otherwise than by atomics.
pub unsafe fn set_eoi_page(xen: &(impl Hypercall + ?Sized), gfn: Gfn) -> Result<(), Errno> {
    let argument = PhysdevPirqEoiGmfn { gmfn: gfn.0 };
    let pointer = (&raw const argument).expose_provenance();
    let args = [PHYSDEVOP_PIRQ_EOI_GMFN_V2, pointer, 0, 0, 0];
    // SAFETY: the call reads the structure; the caller vouches for the page.
    Errno::check(unsafe { xen.hypercall(HypercallNr::PHYSDEV_OP, args) }).map(drop)
}
