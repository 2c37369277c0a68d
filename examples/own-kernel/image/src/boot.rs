//! From Xen's entry of a PVH guest to `main`, and the kernel's memory.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::ptr::NonNull;

use xen_hypercall::{PAGE_SIZE, Page};

// The note names the entry to Xen (XEN_ELFNOTE_PHYS32_ENTRY): 32 bits, flat segments, paging off, no stack. Here the first
// 4 GiB are mapped to themselves in pages of 2 MiB, so that every address is the one that Xen knows. CR4: PAE, OSFXSR,
// OSXMMEXCPT (compiled code uses SSE). EFER: LME. CR0: PG, WP, NE, MP, PE.
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
    mov dword ptr [page_map], offset page_directories_of_4_gib + 3
    mov eax, offset page_directories + 3
    xor ecx, ecx
2:  mov [page_directories_of_4_gib + ecx * 8], eax
    add eax, 4096
    inc ecx
    cmp ecx, 4
    jne 2b
    mov eax, 0x83 // present, writable, large
    xor ecx, ecx
3:  mov [page_directories + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jne 3b
    mov eax, offset page_map
    mov cr3, eax
    mov eax, 0x620
    mov cr4, eax
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, 0x80010023
    mov cr0, eax
    lgdt [segments_pointer]
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
    mov rsp, offset stack_top
    xor ebp, ebp
    call {main}
    ud2
    .popsection

    .pushsection .rodata.boot, "a", @progbits
    .balign 8
segments:
    .quad 0, 0x00AF9B000000FFFF
segments_pointer:
    .word 15
    .long segments
    .popsection

    .pushsection .bss.boot, "aw", @nobits
    .balign 4096
page_map: .skip 4096
page_directories_of_4_gib: .skip 4096
page_directories: .skip 4 * 4096
    .popsection

    .pushsection .bss.stack, "aw", @nobits
    .balign 4096
    .skip 64 * 1024
    .popsection
    "#,
    main = sym crate::main,
);

/// Pages for the kernel's allocator.
const COUNT: usize = 256;

#[repr(C, align(4096))]
struct Memory(UnsafeCell<[u8; COUNT * PAGE_SIZE]>);

// SAFETY: the memory is only given away, by `memory`.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new([0; COUNT * PAGE_SIZE]));

/// The memory for the kernel's allocator: the first page, and how many there are.
pub(crate) fn memory() -> (NonNull<Page>, usize) {
    (NonNull::from(&MEMORY.0).cast(), COUNT)
}
