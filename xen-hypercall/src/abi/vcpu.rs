//! `vcpu.h` and `hvm/hvm_vcpu.h`

pub const VCPUOP_INITIALISE: usize = 0;
pub const VCPUOP_UP: usize = 1;
pub const VCPUOP_DOWN: usize = 2;
pub const VCPUOP_IS_UP: usize = 3;
pub const VCPUOP_GET_RUNSTATE_INFO: usize = 4;
pub const VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA: usize = 5;
pub const VCPUOP_SET_PERIODIC_TIMER: usize = 6;
pub const VCPUOP_STOP_PERIODIC_TIMER: usize = 7;
pub const VCPUOP_SET_SINGLESHOT_TIMER: usize = 8;
pub const VCPUOP_STOP_SINGLESHOT_TIMER: usize = 9;
pub const VCPUOP_REGISTER_VCPU_INFO: usize = 10;
pub const VCPUOP_SEND_NMI: usize = 11;
pub const VCPUOP_GET_PHYSID: usize = 12;
pub const VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA: usize = 13;
/// Since Xen 4.18.
pub const VCPUOP_REGISTER_RUNSTATE_PHYS_AREA: usize = 14;
/// Since Xen 4.18.
pub const VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA: usize = 15;

pub const VCPU_SSHOTTMR_FUTURE: u32 = 1;
pub const RUNSTATE_RUNNING: i32 = 0;
pub const RUNSTATE_RUNNABLE: i32 = 1;
pub const RUNSTATE_BLOCKED: i32 = 2;
pub const RUNSTATE_OFFLINE: i32 = 3;
/// In `state_entry_time`: Xen is writing (`XEN_RUNSTATE_UPDATE`).
pub const XEN_RUNSTATE_UPDATE: u64 = 1 << 63;

pub const VCPU_HVM_MODE_32B: u32 = 0;
pub const VCPU_HVM_MODE_64B: u32 = 1;

wire! {
    VcpuRunstateInfo = 48 { state: i32, pad0: u32, state_entry_time: u64, time: [u64; 4], }
    VcpuRegisterRunstateMemoryArea = 8 { addr: u64, }
    VcpuSetPeriodicTimer = 8 { period_ns: u64, }
    VcpuSetSingleshotTimer = 16 { timeout_abs_ns: u64, flags: u32, pad0: u32, }
    VcpuRegisterVcpuInfo = 16 { mfn: u64, offset: u32, rsvd: u32, }
    VcpuGetPhysid = 8 { phys_id: u64, }
    VcpuRegisterTimeMemoryArea = 8 { addr: u64, }
    VcpuHvmX8632 = 120 {
        eax: u32, ecx: u32, edx: u32, ebx: u32, esp: u32, ebp: u32, esi: u32, edi: u32, eip: u32, eflags: u32,
        cr0: u32, cr3: u32, cr4: u32, pad1: u32, efer: u64,
        cs_base: u32, ds_base: u32, ss_base: u32, es_base: u32, tr_base: u32,
        cs_limit: u32, ds_limit: u32, ss_limit: u32, es_limit: u32, tr_limit: u32,
        cs_ar: u16, ds_ar: u16, ss_ar: u16, es_ar: u16, tr_ar: u16, pad2: [u16; 3],
    }
    VcpuHvmX8664 = 112 {
        rax: u64, rcx: u64, rdx: u64, rbx: u64, rsp: u64, rbp: u64, rsi: u64, rdi: u64, rip: u64, rflags: u64,
        cr0: u64, cr3: u64, cr4: u64, efer: u64,
    }
    // The union of the two, as words.
    VcpuHvmContext = 128 { mode: u32, pad: u32, cpu_regs: [u64; 15], }
}
