//! A hypervisor's stand-in for `vmcall` and `vmmcall` in an ordinary process.
//!
//! What these do in user mode differs: a fault on bare metal, and under a hypervisor possibly an answer from that
//! one. So they are not executed. The processor steps (trap flag) up to the instruction; the handler of the step
//! records the registers, poisons what a debug build of Xen poisons, and continues behind the instruction.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::Once;

use super::{ANSWER, POISON, R8, R9, R10, RAX, RDI, RDX, RSI, RSP, SEEN};

const TRAP_FLAG: i64 = 0x100;
/// Where to write and what, when the next call comes; a size of zero: nothing.
static WRITE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static WORD: AtomicU64 = AtomicU64::new(0);
static LAST: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

/// How many more calls to step up to.
static LEFT: AtomicUsize = AtomicUsize::new(0);

/// Lets the next call write `value` at byte `offset` of what its second argument points to.
pub(super) fn write_at_rsi(offset: u64, value: u64) {
    WRITE[0].store(offset, SeqCst);
    WRITE[1].store(value, SeqCst);
}

/// The first word of what the second argument of the last call pointed to, where a write was asked for.
pub(super) fn word_at_rsi() -> u64 {
    WORD.load(SeqCst)
}

/// The bytes of the instruction that entered last.
pub(super) fn last_instruction() -> [u8; 3] {
    [0, 1, 2].map(|index| LAST[index].load(SeqCst) as u8)
}

/// Runs `enter` step by step until its `vmcall` or `vmmcall`, which is answered, so many times, and at full speed
/// afterwards.
#[inline(never)]
pub(super) fn stepping<T>(calls: usize, enter: impl FnOnce() -> T) -> T {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: zero is a valid `sigaction`, whose fields are then set; the handler has the signature that
        // SA_SIGINFO asks for, and touches atomics and its own context alone.
        unsafe {
            let mut action: libc::sigaction = core::mem::zeroed();
            action.sa_sigaction = on_step as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGTRAP, &action, core::ptr::null_mut()), 0);
        }
    });
    LAST.iter().for_each(|byte| byte.store(0, SeqCst));
    LEFT.store(calls, SeqCst);
    // SAFETY: sets the trap flag, which the handler clears; `push` and `pop` are told to the compiler by the absence
    // of `nostack`.
    unsafe { core::arch::asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
    let result = enter();
    assert_eq!(LEFT.load(SeqCst), 0, "neither vmcall nor vmmcall was met");
    result
}

/// After each instruction: is the next one the way into the hypervisor?
extern "C" fn on_step(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands the interrupted context to the handler of a signal with SA_SIGINFO.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    let rip = registers[libc::REG_RIP as usize];
    // SAFETY: the instruction pointer points to code, which is readable. Fewer than three bytes may be left in its
    // page only for an instruction at the very end of the program's code, which no function's is.
    let code = unsafe { core::ptr::with_exposed_provenance::<[u8; 3]>(rip as usize).read() };
    if !matches!(code, [0x0F, 0x01, 0xC1 | 0xD9]) {
        return;
    }
    for (place, byte) in LAST.iter().zip(code) {
        place.store(byte.into(), SeqCst);
    }
    let order = [
        (RAX, libc::REG_RAX),
        (RDI, libc::REG_RDI),
        (RSI, libc::REG_RSI),
        (RDX, libc::REG_RDX),
        (R10, libc::REG_R10),
        (R8, libc::REG_R8),
        (R9, libc::REG_R9),
        (RSP, libc::REG_RSP),
    ];
    for (place, register) in order {
        SEEN[place].store(registers[register as usize] as u64, SeqCst);
    }
    if WRITE[0].load(SeqCst) != 0 {
        let argument = registers[libc::REG_RSI as usize] as usize;
        let argument = core::ptr::with_exposed_provenance_mut::<u64>(argument);
        let offset = WRITE[0].swap(0, SeqCst) as usize;
        // SAFETY: the one test that asks for it passes a structure of two words, and writes to the second.
        unsafe {
            WORD.store(argument.read(), SeqCst);
            argument.byte_add(offset).write(WRITE[1].load(SeqCst));
        }
    }
    let poisoned = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_R10, libc::REG_R8];
    for register in poisoned {
        registers[register as usize] = POISON as i64;
    }
    registers[libc::REG_RAX as usize] = ANSWER.load(SeqCst) as i64;
    registers[libc::REG_RIP as usize] = rip + 3;
    if LEFT.fetch_sub(1, SeqCst) == 1 {
        registers[libc::REG_EFL as usize] &= !TRAP_FLAG;
    }
}
