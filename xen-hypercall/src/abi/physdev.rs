//! `physdev.h`, the part for guests that are given devices

pub const PHYSDEVOP_IRQ_STATUS_QUERY: usize = 5;
pub const PHYSDEVOP_EOI: usize = 12;
pub const PHYSDEVOP_MAP_PIRQ: usize = 13;
pub const PHYSDEVOP_UNMAP_PIRQ: usize = 14;
pub const PHYSDEVOP_GET_FREE_PIRQ: usize = 23;
pub const PHYSDEVOP_PIRQ_EOI_GMFN_V2: usize = 28;

pub const XENIRQSTAT_NEEDS_EOI: u32 = 1 << 0;
pub const XENIRQSTAT_SHARED: u32 = 1 << 1;

pub const MAP_PIRQ_TYPE_MSI: i32 = 0;
pub const MAP_PIRQ_TYPE_GSI: i32 = 1;
pub const MAP_PIRQ_TYPE_MSI_SEG: i32 = 3;
pub const MAP_PIRQ_TYPE_MULTI_MSI: i32 = 4;

wire! {
    PhysdevEoi = 4 { irq: u32, }
    PhysdevPirqEoiGmfn = 8 { gmfn: u64, }
    PhysdevIrqStatusQuery = 8 { irq: u32, flags: u32, }
    PhysdevMapPirq = 40 {
        domid: u16, pad0: u16, r#type: i32, index: i32, pirq: i32, bus: i32, devfn: i32, entry_nr: i32, pad1: u32,
        table_base: u64,
    }
    PhysdevUnmapPirq = 8 { domid: u16, pad0: u16, pirq: i32, }
    PhysdevGetFreePirq = 8 { r#type: i32, pirq: u32, }
}
