//! The interrupt controller. No interrupt is ever taken: the processor keeps them masked, sleeps until one is pending, and
//! then asks the controller which.

use arm_gic::gicv2::GicV2;
use arm_gic::gicv3::{GicCpuInterface, GicV3};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};

use super::MACHINE;
use super::paging::registers;
use super::tree::{Controller, Machine};
use crate::lock::Lock;

/// Above the default priority of all interrupts, and so none is held back.
const ALL: u8 = 0xFF;

/// Version 2 is asked by memory that is ours alone; version 3 by system registers, and its memory is not needed again.
static V2: Lock<Option<GicV2<'static>>> = Lock::new(None);

/// Lets the interrupts for events and of the timer come.
pub(super) fn enable() -> Result<(), &'static str> {
    let Some(Machine { controller, event, timer, .. }) = MACHINE.get() else { return Ok(()) };
    let interrupts = [id(*event)?, id(*timer)?];
    match *controller {
        Controller::V2 { distributor, interface } => {
            // SAFETY: these are the controller's registers by the device tree, mapped as a device by the page tables, and
            // this is the one place that uses them: the entry comes here once.
            let mut gic =
                unsafe { GicV2::new(registers(distributor).as_ptr(), registers(interface).as_ptr()) };
            gic.setup();
            gic.set_priority_mask(ALL);
            for interrupt in interrupts {
                gic.enable_interrupt(interrupt, true).map_err(|_| "does not enable an interrupt")?;
            }
            V2.with(|place| *place = Some(gic));
        }
        Controller::V3 { distributor, redistributors } => {
            // SAFETY: as above.
            let gic = unsafe {
                GicV3::new(UniqueMmioPointer::new(registers(distributor)), registers(redistributors), 1)
            };
            let mut gic = gic.map_err(|_| "has a layout that is not known")?;
            gic.setup(0);
            GicCpuInterface::set_priority_mask(ALL);
            for interrupt in interrupts {
                let enabled = gic.enable_interrupt(interrupt, Some(0), true);
                enabled.map_err(|_| "does not enable an interrupt")?;
            }
        }
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
    let timer = MACHINE.get().map_or(0, |machine| machine.timer);
    let mut fired = false;
    let mut seen =
        |interrupt: IntId| fired |= interrupt.raw_value() == timer && super::time::timer_interrupt();
    let asked = V2.with(|gic| {
        let gic = gic.as_mut()?;
        while gic.handle_interrupt(InterruptGroup::Group0, &mut seen) {}
        Some(())
    });
    if asked.flatten().is_none() {
        while GicCpuInterface::handle_interrupt(InterruptGroup::Group1, &mut seen) {}
    }
    fired
}
