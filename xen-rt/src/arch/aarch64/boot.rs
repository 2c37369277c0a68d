//! From the Image header to Rust (Linux's `Documentation/arch/arm64/booting.rst`, by which Xen starts its guests too), and what
//! the device tree says about the machine.

use core::arch::global_asm;

use super::{MACHINE, paging, tree};
use crate::machine;
use crate::memory_map::{BootInfo, Range};

// The header is what Xen's tools and its boot loader know a kernel by. The entry comes with the MMU and the caches off, at
// EL1, x0 = physical address of the device tree.
//
// The tables made here map the gigabytes of the image and of the device tree to themselves with every right; `paging::seal`
// replaces them once there is memory to make better ones in. They carry an address space's number (nG, ASID 0) that the
// better ones do not have, so no translation of theirs conflicts with those. What is written before the caches are on goes
// around them, so what caches have of that memory is thrown away. The addresses in the image are corrected with the caches on
// (`SHT_RELR` of the ELF specification has the places).
//
// MAIR: 0 is device memory (nGnRnE), 1 is normal memory (write-back). TCR: 48 bits of address in the lower half, pages of 4
// KiB, tables in inner shareable write-back memory, no upper half. SCTLR: MMU, caches, checks of the stack's alignment.
global_asm!(
    r#"
    .pushsection .text.header, "ax", @progbits
    .global image_start
image_start:
    b       entry
    .long   0
    .quad   0               // where from a multiple of 2 MiB on
    .quad   image_size      // with what is not in the file
    .quad   0xA             // little endian, pages of 4 KiB, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

entry:
    mov     x20, x0

    adrp    x1, boot_tables
    add     x2, x1, #4096
    mov     x3, x1
1:  stp     xzr, xzr, [x3], #16
    add     x4, x1, #8192
    cmp     x3, x4
    b.lo    1b
    orr     x4, x2, #3
    adrp    x5, image_start
    ubfx    x6, x5, #39, #9
    str     x4, [x1, x6, lsl #3]
    bl      map_gigabyte
    adrp    x5, image_end
    bl      map_gigabyte
    mov     x5, x20
    bl      map_gigabyte
    add     x5, x20, #(2 << 20)
    bl      map_gigabyte

    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4
    mov     x4, #4
    lsl     x3, x4, x3      // bytes in a line of the cache
    mov     x4, x1
    add     x5, x1, #8192
    dsb     sy
2:  dc      ivac, x4
    add     x4, x4, x3
    cmp     x4, x5
    b.lo    2b
    dsb     sy

    mov     x3, x1
    mov     x1, #0xff00
    mrs     x4, id_aa64mmfr0_el1
    and     x4, x4, #0xf    // how many bits of physical address there are
    mov     x5, #5          // no more than 48 without other tables
    cmp     x4, x5
    csel    x4, x4, x5, lo
    ldr     x2, ={tcr}
    bfi     x2, x4, #32, #3
    ldr     x4, ={sctlr}
    bl      mmu_on

    adrp    x1, bss_start
    add     x1, x1, :lo12:bss_start
    adrp    x2, bss_end
    add     x2, x2, :lo12:bss_end
3:  cmp     x1, x2
    b.hs    4f
    stp     xzr, xzr, [x1], #16
    b       3b

4:  adrp    x3, image_start
    ldr     x1, ={linked_at}
    subs    x3, x3, x1      // how far all addresses in the image are off
    b.eq    9f
    adrp    x1, relr_start
    add     x1, x1, :lo12:relr_start
    adrp    x2, relr_end
    add     x2, x2, :lo12:relr_end
5:  cmp     x1, x2
    b.hs    9f
    ldr     x5, [x1], #8
    tbnz    x5, #0, 6f
    add     x4, x5, x3      // an even word: there is an address
    ldr     x6, [x4]
    add     x6, x6, x3
    str     x6, [x4], #8
    b       5b
6:  mov     x7, x4          // an odd one: which of the 63 words from there on are addresses
7:  lsr     x5, x5, #1
    cbz     x5, 8f
    tbz     x5, #0, 10f
    ldr     x6, [x7]
    add     x6, x6, x3
    str     x6, [x7]
10: add     x7, x7, #8
    b       7b
8:  add     x4, x4, #(63 * 8)
    b       5b

9:  adrp    x1, stack_top
    add     sp, x1, :lo12:stack_top
    mov     x0, x20
    mov     x29, xzr
    mov     x30, xzr
    b       {start}

    // The gigabyte of x5 into the table of gigabytes at x2: normal memory, for this address space alone. Changes x6, x7.
map_gigabyte:
    ubfx    x6, x5, #30, #9
    lsr     x7, x5, #30
    lsl     x7, x7, #30
    orr     x7, x7, #0xc00  // nG, accessed
    orr     x7, x7, #0x300  // inner shareable
    orr     x7, x7, #0x4    // attribute 1
    orr     x7, x7, #0x1    // a block
    str     x7, [x2, x6, lsl #3]
    ret

    // How every vCPU begins, and goes on after a suspend: x1 into MAIR, x2 into TCR, x3 into TTBR0, and x4, with which the MMU and
    // the caches are on, into SCTLR. Interrupts stay off, and compiled code may use the registers of floating point. Changes x5.
    .global mmu_on
    .hidden mmu_on
mmu_on:
    msr     daifset, #0xf
    mov     x5, #(3 << 20)
    msr     cpacr_el1, x5
    msr     mair_el1, x1
    msr     tcr_el1, x2
    msr     ttbr0_el1, x3
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el1, x4
    isb
    ret
    .ltorg
    .popsection

    .pushsection .bss.tables, "aw", @nobits
    .balign 4096
boot_tables:
    .skip   2 * 4096
    .popsection

    .pushsection .bss.stack, "aw", @nobits
    .balign 4096
    .skip   512 * 1024
    .popsection
    "#,
    tcr = const 16_u64 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23,
    sctlr = const 0x30D0_0800_u64 | 1 | 1 << 2 | 1 << 3 | 1 << 12,
    linked_at = const LINKED_AT,
    start = sym start,
);

/// Where the link script puts the image; Xen may put it elsewhere.
const LINKED_AT: u64 = 0x4000_0000;
/// A device tree is at most so large, by the rules of the entry.
const MOST_TREE: usize = 2 << 20;

extern "C" fn start(device_tree: u64) -> ! {
    // What is wrong with the tree is told by what needs it.
    super::enter();
    let at = core::ptr::with_exposed_provenance::<u8>(device_tree as usize);
    // SAFETY: Xen passes the address of a device tree, whose first words are its magic number and its size; the entry mapped
    // two megabytes from there on. Nobody writes there: memory is given out only when the tree was read.
    let bytes = unsafe {
        let size = u32::from_be(at.cast::<u32>().add(1).read_unaligned()) as usize;
        core::slice::from_raw_parts(at, size.min(MOST_TREE))
    };
    let mut info = BootInfo::new();
    match tree::read(bytes, &mut info) {
        Ok(machine) => MACHINE.put(machine),
        Err(what) => crate::crash(format_args!("the device tree {what}")),
    };
    info.take(paging::image());
    // Nothing is at address zero, wherever the memory is.
    info.take(Range { start: 0, end: 4096 });
    machine::start(info)
}
