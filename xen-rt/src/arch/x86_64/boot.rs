//! From Xen's 32-bit entry to Rust, and what Xen says about the machine (`arch-x86/hvm/start_info.h`).

use core::arch::global_asm;
use core::ffi::CStr;

use xen_hypercall::memory::{MemoryRange, memory_map};

use super::paging;
use crate::machine;
use crate::memory_map::{BootInfo, Range};

// The note tells Xen where to enter: 32-bit, flat, paging off, ebx = physical address of the start info.
//
// The tables made here map the first 4 GiB to themselves with every right; `paging::seal` replaces them once there
// is memory to make better ones in. CR4: PAE, OSFXSR, OSXMMEXCPT (compiled code uses SSE). EFER: LME, NXE.
// CR0: PG, WP, NE, MP, PE.
global_asm!(
    r#"
    .pushsection .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long pvh_entry
    .popsection

    .pushsection .text.entry, "ax", @progbits
    .code32
    .global pvh_entry
pvh_entry:
    cld
    mov esp, offset stack_top
    mov edi, offset boot_pml4
    mov eax, offset boot_pdpt + 3
    mov [edi], eax
    mov edi, offset boot_pdpt
    mov eax, offset boot_pd + 3
    mov ecx, 4
2:  mov [edi], eax
    add edi, 8
    add eax, 4096
    dec ecx
    jnz 2b
    mov edi, offset boot_pd
    mov eax, 0x83
    mov ecx, 2048
3:  mov [edi], eax
    add edi, 8
    add eax, 0x200000
    dec ecx
    jnz 3b
    mov eax, offset boot_pml4
    mov cr3, eax
    mov eax, 0x620
    mov cr4, eax
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, 0x80010023
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    push 8
    mov eax, offset long_mode
    push eax
    retf
    .code64
long_mode:
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov fs, eax
    mov gs, eax
    mov rsp, offset stack_top
    mov edi, ebx
    xor ebp, ebp
    call {start}
    ud2
    .popsection

    .pushsection .rodata.boot, "a", @progbits
    .balign 8
boot_gdt:
    .quad 0, 0x00AF9B000000FFFF
boot_gdt_pointer:
    .word 15
    .long boot_gdt
    .popsection

    .pushsection .bss.boot, "aw", @nobits
    .balign 4096
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd: .skip 4 * 4096
    .popsection

    .pushsection .bss.stack, "aw", @nobits
    .balign 4096
    .skip 512 * 1024
    .popsection
    "#,
    start = sym start,
);

const MAGIC: u32 = 0x336E_C578;
const E820_RAM: u32 = 1;
const MAX_RANGES: usize = 32;
/// Memory below this stays out of use: page zero, and what PCs keep here.
const LOW: u64 = 1 << 20;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    nr_modules: u32,
    modlist_paddr: u64,
    cmdline_paddr: u64,
    rsdp_paddr: u64,
    memmap_paddr: u64,
    memmap_entries: u32,
    reserved: u32,
}

#[repr(C)]
struct MemmapEntry {
    addr: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

fn add(info: &mut BootInfo, start: u64, size: u64, kind: u32) {
    if kind == E820_RAM {
        info.add_ram(start, size);
    }
}

extern "C" fn start(start_info: u64) -> ! {
    let mut info = BootInfo::new();
    // SAFETY: Xen passes the address of this structure, below 4 GiB and so mapped; the addresses in it are valid
    // where they are not zero. Nothing has written to memory outside the image so far.
    unsafe {
        let xen = &*core::ptr::with_exposed_provenance::<StartInfo>(start_info as usize);
        assert!(xen.magic == MAGIC, "not started by Xen as a PVH guest");
        if xen.cmdline_paddr != 0 {
            let text =
                CStr::from_ptr(core::ptr::with_exposed_provenance(xen.cmdline_paddr as usize)).to_bytes();
            info.set_cmdline(text);
        }
        if xen.version >= 1 && xen.memmap_paddr != 0 {
            let first = core::ptr::with_exposed_provenance::<MemmapEntry>(xen.memmap_paddr as usize);
            for entry in core::slice::from_raw_parts(first, xen.memmap_entries as usize) {
                add(&mut info, entry.addr, entry.size, entry.kind);
            }
        }
    }
    // The first domain of an older Xen has to ask for its memory map.
    if info.ram().is_empty() {
        if let Some(call) = super::call() {
            let mut map = [MemoryRange::default(); MAX_RANGES];
            let count = memory_map(&call, &mut map).unwrap_or(0);
            map.iter().take(count).for_each(|range| add(&mut info, range.start, range.size, range.kind));
        }
    }
    info.take(Range { start: 0, end: LOW });
    info.take(paging::image());
    machine::start(info)
}
