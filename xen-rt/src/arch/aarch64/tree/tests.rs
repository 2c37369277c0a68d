//! Trees as Xen's toolstack makes them, and what could be wrong with them.

use std::vec::Vec;

use vm_fdt::{FdtReserveEntry, FdtWriter};

use super::*;

/// A tree whose parts can be left out or be others.
struct Guest {
    reserved: Vec<(u64, u64)>,
    memory: Vec<[u64; 2]>,
    bootargs: &'static str,
    initrd: Option<(u64, u64)>,
    hypervisor: Option<Vec<u64>>,
    event: [u32; 3],
    controller: (&'static str, Vec<u64>),
    timer: bool,
    vcpus: u32,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            reserved: Vec::new(),
            memory: Vec::from([[0x4000_0000, 0x200_0000]]),
            bootargs: "ip=10.0.0.2/24 log=debug",
            initrd: None,
            hypervisor: Some(Vec::from([0x3800_0000, 0x100_0000, 0x4220_0000, 0x7DE0_0000])),
            event: [1, 15, 0xF08],
            controller: ("arm,gic-v3", Vec::from([0x300_1000, 0x1_0000, 0x302_0000, 0x100_0000])),
            timer: true,
            vcpus: 2,
        }
    }
}

impl Guest {
    fn tree(&self) -> Vec<u8> {
        self.write().expect("a valid tree")
    }

    fn write(&self) -> Result<Vec<u8>, vm_fdt::Error> {
        let reserved: Vec<_> = self
            .reserved
            .iter()
            .map(|(start, size)| FdtReserveEntry::new(*start, *size).expect("a range"))
            .collect();
        let mut fdt = FdtWriter::new_with_mem_reserv(&reserved)?;
        let root = fdt.begin_node("")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        let chosen = fdt.begin_node("chosen")?;
        fdt.property_string("bootargs", self.bootargs)?;
        if let Some((start, end)) = self.initrd {
            fdt.property_u64("linux,initrd-start", start)?;
            fdt.property_u32("linux,initrd-end", end as u32)?;
        }
        fdt.end_node(chosen)?;
        let cpus = fdt.begin_node("cpus")?;
        fdt.property_u32("#address-cells", 1)?;
        fdt.property_u32("#size-cells", 0)?;
        for number in 0..self.vcpus {
            let cpu = fdt.begin_node(&std::format!("cpu@{number}"))?;
            fdt.property_string("device_type", "cpu")?;
            fdt.property_u32("reg", number)?;
            fdt.end_node(cpu)?;
        }
        fdt.end_node(cpus)?;
        for range in &self.memory {
            let memory = fdt.begin_node(&std::format!("memory@{:x}", range[0]))?;
            fdt.property_string("device_type", "memory")?;
            fdt.property_array_u64("reg", range)?;
            fdt.end_node(memory)?;
        }
        let (kind, registers) = &self.controller;
        let controller = fdt.begin_node("interrupt-controller@3001000")?;
        fdt.property_string("compatible", kind)?;
        fdt.property_array_u64("reg", registers)?;
        fdt.end_node(controller)?;
        if self.timer {
            let timer = fdt.begin_node("timer")?;
            fdt.property_string_list(
                "compatible",
                Vec::from(["arm,armv7-timer".into(), "arm,armv8-timer".into()]),
            )?;
            let interrupts = [1, 13, 0xF08, 1, 14, 0xF08, 1, 11, 0xF08];
            fdt.property_array_u32("interrupts", &interrupts)?;
            fdt.end_node(timer)?;
        }
        if let Some(addresses) = &self.hypervisor {
            let hypervisor = fdt.begin_node("hypervisor")?;
            fdt.property_string_list("compatible", Vec::from(["xen,xen-4.17".into(), "xen,xen".into()]))?;
            fdt.property_array_u64("reg", addresses)?;
            fdt.property_array_u32("interrupts", &self.event)?;
            fdt.end_node(hypervisor)?;
        }
        fdt.end_node(root)?;
        fdt.finish()
    }

    fn read(&self) -> (Result<Machine, &'static str>, BootInfo) {
        let mut info = BootInfo::new();
        (read(&self.tree(), &mut info), info)
    }
}

fn range(start: u64, size: u64) -> Range {
    Range { start, end: start + size }
}

#[test]
fn a_guest_of_the_toolstack() {
    let (machine, info) = Guest::default().read();
    let wanted = Machine {
        controller: Controller::V3 {
            distributor: range(0x300_1000, 0x1_0000),
            redistributors: range(0x302_0000, 0x100_0000),
        },
        event: 31,
        timer: 27,
        room: Some(range(0x4220_0000, 0x7DE0_0000)),
        vcpus: 2,
    };
    assert_eq!(machine, Ok(wanted));
    assert_eq!((info.ram(), info.end()), (0x200_0000, 0x4200_0000));
    assert!(info.usable().eq([range(0x4000_0000, 0x200_0000)]));
    assert_eq!(info.cmdline(), "ip=10.0.0.2/24 log=debug");
}

#[test]
fn the_older_controller_and_other_interrupts() {
    let guest = Guest {
        controller: ("arm,gic-400", Vec::from([0x300_1000, 0x1000, 0x300_2000, 0x2000])),
        event: [1, 0, 0xF08],
        vcpus: 0,
        ..Guest::default()
    };
    let machine = guest.read().0.expect("a machine");
    let (distributor, interface) = (range(0x300_1000, 0x1000), range(0x300_2000, 0x2000));
    assert_eq!(machine.controller, Controller::V2 { distributor, interface });
    assert_eq!(machine.controller.registers(), [distributor, interface]);
    assert_eq!((machine.event, machine.vcpus), (16, 1));
    let shared = Guest { event: [0, 5, 4], ..Guest::default() };
    assert_eq!(shared.read().0.expect("a machine").event, 37);
}

#[test]
fn the_name_of_a_vcpu_has_its_low_four_bits_apart() {
    for (vcpu, name) in [(0, 0), (1, 1), (15, 15), (16, 0x100), (35, 0x203), (127, 0x70F)] {
        assert_eq!(affinity(vcpu), name);
    }
}

#[test]
fn memory_in_several_places_and_parts_of_it_in_use() {
    let guest = Guest {
        memory: Vec::from([[0x4000_0000, 0x8000_0000], [0x2_0000_0000, 0x1000_0000]]),
        reserved: Vec::from([(0x4800_0000, 0x10_0000)]),
        initrd: Some((0x5000_0000, 0x5000_1234)),
        ..Guest::default()
    };
    let (machine, info) = guest.read();
    assert!(machine.is_ok());
    let mut free: Vec<_> = info.usable().collect();
    free.sort_by_key(|range| range.start);
    let wanted = [
        range(0x4000_0000, 0x800_0000),
        range(0x4810_0000, 0x7F0_0000),
        Range { start: 0x5000_2000, end: 0xC000_0000 },
        range(0x2_0000_0000, 0x1000_0000),
    ];
    assert_eq!(free, wanted);
}

#[test]
fn without_a_free_place_the_grant_tables_place_is_the_room() {
    let addresses = [0x3800_0000, 0x100_0000];
    let guest = Guest { hypervisor: Some(addresses.into()), ..Guest::default() };
    assert_eq!(guest.read().0.expect("a machine").room, Some(range(0x3800_0000, 0x100_0000)));
    // One that is too small is none.
    let small = Vec::from([0x3800_0000, 0x4_0000, 0x4220_0000, 0x1000]);
    let guest = Guest { hypervisor: Some(small), ..Guest::default() };
    assert_eq!(guest.read().0.expect("a machine").room, None);
}

#[test]
fn what_is_missing_is_told() {
    let why = |guest: Guest| guest.read().0.expect_err("something is missing");
    assert!(why(Guest { memory: Vec::new(), ..Guest::default() }).contains("memory"));
    assert!(why(Guest { hypervisor: None, ..Guest::default() }).contains("not Xen"));
    assert!(why(Guest { timer: false, ..Guest::default() }).contains("timer"));
    assert!(why(Guest { event: [2, 15, 0], ..Guest::default() }).contains("interrupt for events"));
    assert!(why(Guest { event: [1, 16, 0], ..Guest::default() }).contains("interrupt for events"));
    let strange = ("arm,gic-v5", Vec::from([0, 0]));
    assert!(why(Guest { controller: strange, ..Guest::default() }).contains("version 2 or 3"));
    let short = ("arm,gic-v3", Vec::from([0x300_1000, 0x1_0000]));
    assert!(why(Guest { controller: short, ..Guest::default() }).contains("too little"));
}

#[test]
fn a_tree_that_ends_early_or_is_none_is_refused() {
    let tree = Guest::default().tree();
    let read = |bytes: &[u8]| read(bytes, &mut BootInfo::new());
    assert_eq!(read(&[]), Err("is none"));
    assert_eq!(read(&[0; 64]), Err("is none"));
    for end in (0..tree.len()).step_by(7) {
        assert!(read(&tree[..end]).is_err(), "{end} bytes");
    }
}

/// Whatever a byte becomes, reading ends without a panic.
#[test]
fn a_tree_with_a_wrong_byte_is_read_or_refused() {
    let tree = Guest { reserved: Vec::from([(0x4800_0000, 0x1000)]), ..Guest::default() }.tree();
    for at in 0..tree.len() {
        for byte in [0x00, 0x01, 0x7F, 0xFF] {
            let mut wrong = tree.clone();
            wrong[at] = byte;
            let _read_or_refused = read(&wrong, &mut BootInfo::new());
        }
    }
}
