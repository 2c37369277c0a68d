//! `hvm/hvm_op.h` and `hvm/params.h`

pub const HVMOP_SET_PARAM: usize = 0;
pub const HVMOP_GET_PARAM: usize = 1;
pub const HVMOP_FLUSH_TLBS: usize = 5;
pub const HVMOP_GET_TIME: usize = 10;
pub const HVMOP_GET_MEM_TYPE: usize = 15;
pub const HVMOP_SET_EVTCHN_UPCALL_VECTOR: usize = 23;
pub const HVMOP_GUEST_REQUEST_VM_EVENT: usize = 24;

pub const HVM_PARAM_CALLBACK_IRQ: u32 = 0;
pub const HVM_PARAM_STORE_PFN: u32 = 1;
pub const HVM_PARAM_STORE_EVTCHN: u32 = 2;
pub const HVM_PARAM_VM86_TSS: u32 = 15;
pub const HVM_PARAM_CONSOLE_PFN: u32 = 17;
pub const HVM_PARAM_CONSOLE_EVTCHN: u32 = 18;
pub const HVM_PARAM_ACPI_IOPORTS_LOCATION: u32 = 19;
pub const HVM_PARAM_VM_GENERATION_ID_ADDR: u32 = 34;
pub const HVM_PARAM_ALTP2M: u32 = 35;
pub const HVM_PARAM_X87_FIP_WIDTH: u32 = 36;
pub const HVM_PARAM_VM86_TSS_SIZED: u32 = 37;

pub const HVM_PARAM_CALLBACK_TYPE_GSI: u64 = 0;
pub const HVM_PARAM_CALLBACK_TYPE_PCI_INTX: u64 = 1;
/// On x86.
pub const HVM_PARAM_CALLBACK_TYPE_VECTOR: u64 = 2;
/// On Arm.
pub const HVM_PARAM_CALLBACK_TYPE_PPI: u64 = 2;

pub const HVMMEM_RAM_RW: u16 = 0;
pub const HVMMEM_RAM_RO: u16 = 1;
pub const HVMMEM_MMIO_DM: u16 = 2;
pub const HVMMEM_IOREQ_SERVER: u16 = 4;

wire! {
    XenHvmParam = 16 { domid: u16, pad0: u16, index: u32, value: u64, }
    XenHvmGetTime = 8 { now: u64, }
    XenHvmGetMemType = 16 { domid: u16, mem_type: u16, pad: [u16; 2], pfn: u64, }
    XenHvmEvtchnUpcallVector = 8 { vcpu: u32, vector: u8, pad0: [u8; 3], }
}
