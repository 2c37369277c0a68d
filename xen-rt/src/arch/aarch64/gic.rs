//! The interrupt controller. No interrupt is ever taken: the processor keeps them masked, sleeps until one is pending, and
//! then asks the controller which.

use arm_gic::gicv2::GicV2;
use arm_gic::gicv3::registers::GicrSgi;
use arm_gic::gicv3::{GicCpuInterface, GicV3};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};
#[cfg(any(feature = "smp", feature = "suspend"))]
use xen_hypercall::VcpuId;

use super::MACHINE;
use super::paging::registers;
use super::tree::{Controller, Machine};
use crate::lock::Lock;
use crate::memory_map::Range;

/// Above the default priority of all interrupts, and so none is held back.
const ALL: u8 = 0xFF;

/// Version 2 is asked by memory that is ours alone.
static V2: Lock<Option<GicV2<'static>>> = Lock::new(None);
/// Version 3 is asked by system registers; its memory is used again when another vCPU comes up, or the first goes on.
#[cfg(any(feature = "smp", feature = "suspend"))]
static V3: Lock<Option<GicV3<'static>>> = Lock::new(None);

/// Lets the interrupts for events and of the timer come to the first vCPU.
pub(super) fn enable() -> Result<(), &'static str> {
    let Some(Machine { controller, .. }) = MACHINE.get() else { return Ok(()) };
    match *controller {
        Controller::V2 { distributor, interface } => {
            // SAFETY: these are the controller's registers by the device tree, mapped as a device by the page tables, and
            // this is the one place that uses them: the entry comes here once.
            let mut gic =
                unsafe { GicV2::new(registers(distributor).as_ptr(), registers(interface).as_ptr()) };
            join_v2(&mut gic)?;
            V2.with(|place| *place = Some(gic));
        }
        Controller::V3 { distributor, redistributors } => {
            // SAFETY: as above.
            let gic = unsafe {
                GicV3::new(
                    UniqueMmioPointer::new(registers(distributor)),
                    registers(redistributors),
                    redistributed(redistributors),
                )
            };
            let mut gic = gic.map_err(|_| "has a layout that is not known")?;
            gic.setup(0);
            join_v3(&mut gic, 0)?;
            #[cfg(any(feature = "smp", feature = "suspend"))]
            V3.with(|place| *place = Some(gic));
        }
    }
    Ok(())
}

/// Lets them come to the vCPU that runs this: another one, or the first after a suspend.
#[cfg(any(feature = "smp", feature = "suspend"))]
pub(super) fn enable_here(vcpu: VcpuId) -> Result<(), &'static str> {
    let found = match MACHINE.get().map(|machine| machine.controller) {
        // Each vCPU has registers of its own for its own interrupts, at the same address.
        Some(Controller::V2 { .. }) => V2.with(|gic| gic.as_mut().map(join_v2)),
        Some(Controller::V3 { .. }) => V3.with(|gic| {
            let gic = gic.as_mut()?;
            let cpu = vcpu.0 as usize;
            gic.redistributor(cpu).ok()?;
            gic.init_cpu(cpu);
            GicCpuInterface::enable_group1(true);
            Some(join_v3(gic, cpu))
        }),
        None => None,
    };
    found.flatten().unwrap_or(Err("does not know the vCPU"))
}

/// How many of the redistributors are used, of those that are there.
fn redistributed(registers: Range) -> usize {
    let there = (registers.end - registers.start) as usize / size_of::<GicrSgi>();
    let wanted = if cfg!(feature = "smp") { MACHINE.get().map_or(1, |machine| machine.vcpus) } else { 1 };
    wanted.min(there)
}

/// The two interrupts that there are.
fn interrupts() -> Result<[IntId; 2], &'static str> {
    let Some(Machine { event, timer, .. }) = MACHINE.get() else { return Err("is not known") };
    Ok([id(*event)?, id(*timer)?])
}

fn join_v2(gic: &mut GicV2<'_>) -> Result<(), &'static str> {
    gic.setup();
    gic.set_priority_mask(ALL);
    for interrupt in interrupts()? {
        gic.enable_interrupt(interrupt, true).map_err(|_| "does not enable an interrupt")?;
    }
    Ok(())
}

fn join_v3(gic: &mut GicV3<'_>, cpu: usize) -> Result<(), &'static str> {
    GicCpuInterface::set_priority_mask(ALL);
    for interrupt in interrupts()? {
        let enabled = gic.enable_interrupt(interrupt, Some(cpu), true);
        enabled.map_err(|_| "does not enable an interrupt")?;
    }
    Ok(())
}

fn id(number: u32) -> Result<IntId, &'static str> {
    match number {
        16..32 => Ok(IntId::ppi(number - 16)),
        _ => Err("has an interrupt that is not of a vCPU"),
    }
}

/// Takes note of all interrupts that are pending, and says whether the timer has fired. That for events has nothing to tell but
/// that there were some.
pub(super) fn acknowledge() -> bool {
    let Some(Machine { controller, timer, .. }) = MACHINE.get() else { return false };
    let mut fired = false;
    let mut seen =
        |interrupt: IntId| fired |= interrupt.raw_value() == *timer && super::time::timer_interrupt();
    match controller {
        Controller::V2 { .. } => {
            V2.with(|gic| {
                let Some(gic) = gic else { return };
                while gic.handle_interrupt(InterruptGroup::Group0, &mut seen) {}
            });
        }
        Controller::V3 { .. } => {
            while GicCpuInterface::handle_interrupt(InterruptGroup::Group1, &mut seen) {}
        }
    }
    fired
}
