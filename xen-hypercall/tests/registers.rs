//! Where the arguments of a hypercall go on x86-64, and what survives it: both ways in are executed, with a stand-in
//! for the hypervisor that records every register and then poisons those it may change, as a debug build of Xen does.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod trap;

use core::arch::global_asm;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

use xen_hypercall::arch::x86_64::{HypercallPage, VendorCall};
use xen_hypercall::{Hypercall, HypercallNr, hvm};

/// What the stand-ins saw, in the order below, and what they answer.
static SEEN: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
static ANSWER: AtomicU64 = AtomicU64::new(0);
const RAX: usize = 0;
const RDI: usize = 1;
const RSI: usize = 2;
const RDX: usize = 3;
const R10: usize = 4;
const R8: usize = 5;
const R9: usize = 6;
const RSP: usize = 7;
const POISON: u64 = 0xDEAD_F00D_DEAD_F00D;

// A hypercall page: entries of 32 bytes that load the number and enter "Xen", which also scribbles below its stack.
global_asm!(
    ".pushsection .text.hypercall_page, \"ax\", @progbits",
    ".balign 4096",
    ".globl test_hypercall_page",
    "test_hypercall_page:",
    ".set nr, 0",
    ".rept 128",
    ".balign 32",
    "mov eax, nr",
    "jmp test_hypercall_entry",
    ".set nr, nr + 1",
    ".endr",
    "test_hypercall_entry:",
    "mov qword ptr [rip + {seen}], rax",
    "mov qword ptr [rip + {seen} + 8], rdi",
    "mov qword ptr [rip + {seen} + 16], rsi",
    "mov qword ptr [rip + {seen} + 24], rdx",
    "mov qword ptr [rip + {seen} + 32], r10",
    "mov qword ptr [rip + {seen} + 40], r8",
    "mov qword ptr [rip + {seen} + 48], r9",
    "mov qword ptr [rip + {seen} + 56], rsp",
    "movabs rdi, {poison}",
    "mov rsi, rdi",
    "mov rdx, rdi",
    "mov r10, rdi",
    "mov r8, rdi",
    "mov rcx, rdi",
    "mov r9, rdi",
    "mov r11, rdi",
    "mov qword ptr [rsp - 8], rdi",
    "mov qword ptr [rsp - 16], rdi",
    "mov qword ptr [rsp - 64], rdi",
    "mov qword ptr [rsp - 128], rdi",
    "mov rax, qword ptr [rip + {answer}]",
    "ret",
    ".popsection",
    seen = sym SEEN,
    answer = sym ANSWER,
    poison = const POISON,
);

unsafe extern "C" {
    static test_hypercall_page: u8;
}

fn page() -> HypercallPage {
    // SAFETY: the code above is such a page, if a short one: numbers below 128 have an entry, and no test uses others.
    unsafe { HypercallPage::new(&raw const test_hypercall_page) }
}

/// One test at a time looks at the records.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Enters by the vendor's instruction, which does not reach a hypervisor: it is stepped up to and then skipped.
struct Stepped(VendorCall);

// SAFETY: the instruction is not executed; the stand-in changes only what a hypercall may.
unsafe impl Hypercall for Stepped {
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
        // SAFETY: the caller's promises go on to the inner call.
        trap::stepping(1, || unsafe { self.0.hypercall(nr, args) })
    }
}

fn vendors() -> [Stepped; 2] {
    [*b"GenuineIntel", *b"AuthenticAMD"].map(|vendor| {
        // SAFETY: used through `Stepped` alone, which does not let the instruction execute.
        Stepped(unsafe { VendorCall::of_vendor(vendor) }.unwrap())
    })
}

fn call(way: &impl Hypercall, nr: usize, args: [usize; 5]) -> isize {
    // SAFETY: no hypervisor is reached; the stand-ins follow no address.
    unsafe { way.hypercall(HypercallNr(nr), args) }
}

fn each_argument_in_its_register(way: &impl Hypercall, what: &str) {
    for arity in 0..=5 {
        for nr in [0, 12, 29, 34, 41] {
            let mut args = [0; 5];
            for (index, arg) in args.iter_mut().enumerate().take(arity) {
                *arg = 0x1111_2222_3333_0000 * (index + 1) + nr;
            }
            SEEN.iter().for_each(|place| place.store(!0, SeqCst));
            ANSWER.store((-(nr as i64)) as u64, SeqCst);
            assert_eq!(call(way, nr, args), -(nr as isize), "{what}: result");
            let seen = |register: usize| SEEN[register].load(SeqCst) as usize;
            assert_eq!([RDI, RSI, RDX, R10, R8].map(seen), args, "{what}: call {nr} of {arity} arguments");
            assert_eq!(seen(RAX) as u32 as usize, nr, "{what}: number");
            assert!(args[4] == 0 || seen(R9) != args[4], "{what}: argument 5 is in r9");
        }
    }
}

#[test]
fn arguments_through_the_page() {
    let _turn = alone();
    each_argument_in_its_register(&page(), "page");
    assert_eq!(SEEN[RSP].load(SeqCst) % 16, 8, "the stack is aligned at the call");
}

#[test]
fn arguments_through_the_vendors_instructions() {
    let _turn = alone();
    for (way, (name, code)) in vendors().iter().zip([("vmcall", 0xC1), ("vmmcall", 0xD9)]) {
        assert_eq!(way.0.name(), name);
        each_argument_in_its_register(way, name);
        assert_eq!(trap::last_instruction(), [0x0F, 0x01, code]);
    }
}

/// More values than there are registers live across the call, some of them in registers that the call changes.
#[inline(never)]
fn values_across(way: &impl Hypercall, seed: u64) -> [u64; 24] {
    let v: [u64; 24] = core::array::from_fn(|index| black_box(seed).rotate_left(index as u32));
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, w, x, y] = v;
    let result = call(way, 7, [1, 2, 3, 4, 5]) as u64;
    let all = [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, w, x, y];
    all.map(|value| value ^ result)
}

/// A leaf whose few locals may lie below its stack pointer, where `call` pushes.
#[inline(never)]
fn leaf(way: &impl Hypercall, a: u64, b: u64, c: u64) -> u64 {
    let locals = [a, b, c, a ^ b, b ^ c];
    let at = black_box(locals.len() - 1);
    // SAFETY: as in `call`.
    let result = unsafe { way.hypercall(HypercallNr(1), [1, 2, 3, 4, 5]) } as u64;
    locals[at].wrapping_add(result)
}

/// The same arguments twice, and once more as a value: all of them were in registers that the call changes.
#[inline(never)]
fn arguments_again(way: &impl Hypercall, args: [usize; 5]) -> [usize; 5] {
    // SAFETY: as in `call`.
    unsafe {
        way.hypercall(HypercallNr(1), args);
        way.hypercall(HypercallNr(1), args);
    }
    args
}

fn the_callers_values_survive(way: &impl Hypercall) {
    ANSWER.store(0x55, SeqCst);
    for seed in [1u64, 0x0123_4567_89AB_CDEF, !0] {
        let expected: [u64; 24] = core::array::from_fn(|index| seed.rotate_left(index as u32) ^ 0x55);
        assert_eq!(values_across(way, seed), expected);
        assert_eq!(leaf(way, seed, 3, 5), (3 ^ 5) + 0x55);
    }
}

#[test]
fn arguments_survive_poisoned_registers() {
    let _turn = alone();
    let args = black_box([11, 12, 13, 14, 15]);
    let seen = || [RDI, RSI, RDX, R10, R8].map(|register| SEEN[register].load(SeqCst) as usize);
    assert_eq!((arguments_again(&page(), args), seen()), (args, args));
    for Stepped(way) in vendors() {
        assert_eq!((trap::stepping(2, || arguments_again(&way, args)), seen()), (args, args));
    }
}

#[test]
fn the_callers_values_survive_poisoned_registers() {
    let _turn = alone();
    the_callers_values_survive(&page());
    vendors().iter().for_each(the_callers_values_survive);
}

/// What the hypervisor writes to the argument is seen: the compiler must not think it unchanged by the call.
#[test]
fn memory_that_xen_writes_is_read_afterwards() {
    let _turn = alone();
    for way in vendors() {
        ANSWER.store(0, SeqCst);
        trap::write_at_rsi(8, 0x1234_5678_9ABC);
        assert_eq!(hvm::get_param(&way, hvm::HvmParam::CONSOLE_PFN), Ok(0x1234_5678_9ABC));
        // `domid` is DOMID_SELF, and the parameter's number follows at byte 4.
        assert_eq!(trap::word_at_rsi(), 17 << 32 | 0x7FF0);
        assert_eq!(SEEN[RDI].load(SeqCst), 1, "HVMOP_get_param");
    }
}
