//! What the device tree says about the machine (`docs/misc/arm/device-tree/guest.txt` of Xen).

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property, ToCellInt};

use crate::memory_map::{BootInfo, Range};

/// What of the machine the kernel needs beyond its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Machine {
    pub(super) controller: Controller,
    /// The interrupt by which Xen tells of events.
    pub(super) event: u32,
    /// The interrupt of the virtual timer.
    pub(super) timer: u32,
    /// Where nothing is, and pages of other domains can be mapped.
    pub(super) room: Option<Range>,
    /// How many vCPUs there are.
    #[cfg_attr(not(any(test, feature = "smp")), allow(dead_code, reason = "one is used"))]
    pub(super) vcpus: usize,
}

/// The interrupt controller's registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Controller {
    /// Version 2.
    V2 { distributor: Range, interface: Range },
    /// Version 3.
    V3 { distributor: Range, redistributors: Range },
}

impl Controller {
    /// The registers, to be mapped.
    pub(super) fn registers(&self) -> [Range; 2] {
        match *self {
            Self::V2 { distributor, interface } => [distributor, interface],
            Self::V3 { distributor, redistributors } => [distributor, redistributors],
        }
    }
}

/// Room smaller than this is none.
const LEAST_ROOM: u64 = 4096 * 4096;

/// Reads the tree: memory and command line go to `info`, the rest is returned. An error says what the tree does.
pub(super) fn read(tree: &[u8], info: &mut BootInfo) -> Result<Machine, &'static str> {
    let tree = Fdt::new(tree).map_err(|_| "is none")?;
    let root = tree.root();
    for node in root.children().filter(is_memory) {
        for range in ranges(node) {
            info.add_ram(range.start, range.end - range.start);
        }
    }
    if info.ram() == 0 {
        return Err("has no memory");
    }
    if let Some(reserved) = root.child("reserved-memory") {
        reserved.children().flat_map(ranges).for_each(|range| info.take(range));
    }
    for part in tree.memory_reservations() {
        info.take(Range { start: part.address(), end: part.address().saturating_add(part.size()) });
    }
    if let Some(chosen) = root.child("chosen") {
        if let Some(words) = chosen.property("bootargs") {
            let text = words.value().split(|byte| *byte == 0).next().unwrap_or(&[]);
            info.set_cmdline(text);
        }
        if let (Some(start), Some(end)) =
            (number(chosen, "linux,initrd-start"), number(chosen, "linux,initrd-end"))
        {
            info.take(Range { start, end });
        }
    }
    let hypervisor = compatible(root, &["xen,xen"]).ok_or("has no hypervisor node: this is not Xen")?;
    // Its addresses: where the grant table's frames may be, then where nothing is. What is not there is not used.
    let room = ranges(hypervisor).skip(1).find(|range| range.end - range.start >= LEAST_ROOM);
    let room =
        room.or_else(|| ranges(hypervisor).next().filter(|range| range.end - range.start >= LEAST_ROOM));
    let timer = compatible(root, &["arm,armv8-timer", "arm,armv7-timer"]).ok_or("has no timer")?;
    Ok(Machine {
        controller: controller(root)?,
        event: interrupt(hypervisor, 0).ok_or("has no interrupt for events")?,
        // In order: secure, physical, virtual.
        timer: interrupt(timer, 2).ok_or("has no virtual timer")?,
        room,
        vcpus: vcpus(root),
    })
}

fn is_memory(node: &FdtNode<'_>) -> bool {
    node.property("device_type").is_some_and(|kind| kind.value() == b"memory\0")
}

fn vcpus(root: FdtNode<'_>) -> usize {
    let is_cpu =
        |node: &FdtNode<'_>| node.property("device_type").is_some_and(|kind| kind.value() == b"cpu\0");
    let cpus = root.child("cpus");
    cpus.map_or(1, |cpus| cpus.children().filter(is_cpu).count().max(1))
}

/// What a vCPU's processor calls itself, and the tree its node: the low four bits, then the others from the eighth on, for an
/// interrupt goes to sixteen processors at a time (Xen's `vaffinity`).
#[cfg(any(test, feature = "smp"))]
pub(super) fn affinity(vcpu: u32) -> u64 {
    u64::from(vcpu & 0xF | vcpu >> 4 << 8)
}

fn controller(root: FdtNode<'_>) -> Result<Controller, &'static str> {
    let two = |node| {
        let mut ranges = ranges(node);
        ranges.next().zip(ranges.next()).ok_or("tells too little of the interrupt controller")
    };
    if let Some(node) = compatible(root, &["arm,gic-v3"]) {
        let (distributor, redistributors) = two(node)?;
        return Ok(Controller::V3 { distributor, redistributors });
    }
    if let Some(node) = compatible(root, &["arm,gic-400", "arm,cortex-a15-gic", "arm,cortex-a9-gic"]) {
        let (distributor, interface) = two(node)?;
        return Ok(Controller::V2 { distributor, interface });
    }
    Err("has no interrupt controller of version 2 or 3")
}

/// The first node below the root that is compatible with one of these.
fn compatible<'t>(root: FdtNode<'t>, names: &[&str]) -> Option<FdtNode<'t>> {
    root.children().find(|node| names.iter().any(|name| node.is_compatible(name)))
}

/// The addresses of a node. What does not fit 64 bits is left out.
fn ranges(node: FdtNode<'_>) -> impl Iterator<Item = Range> {
    node.reg().ok().flatten().into_iter().flatten().filter_map(|reg| {
        let start: u64 = reg.address().ok()?;
        let end = start.checked_add(reg.size().ok()?)?;
        (start < end).then_some(Range { start, end })
    })
}

/// A number of one cell or two.
fn number(node: FdtNode<'_>, name: &str) -> Option<u64> {
    let property = node.property(name)?;
    let cells = property.value().len() / 4;
    property.as_prop_encoded_array([cells]).ok()?.next()?[0].to_int().ok()
}

/// The number of a node's interrupt, as the controller counts: private ones of a vCPU from 16 on, shared ones from 32 on.
fn interrupt(node: FdtNode<'_>, index: usize) -> Option<u32> {
    let property = node.property("interrupts")?;
    let [kind, number, _flags] = property.as_prop_encoded_array([1, 1, 1]).ok()?.nth(index)?;
    let (kind, number): (u32, u32) = (kind.to_int().ok()?, number.to_int().ok()?);
    match (kind, number) {
        (1, 0..16) => Some(16 + number),
        (0, 0..988) => Some(32 + number),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
