//! A processor in ring 0, for code that turns interrupts on and off and halts, in an ordinary process.
//!
//! The real processor steps through the code (trap flag). Before each instruction the handler of the step may deliver the
//! interrupt of an event, and it emulates the instructions that are privileged or that tell of interrupts, `iretq` among
//! them. All others run as they are, those of an interrupt handler included.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, Once, PoisonError};

use xen_hypercall::arch::x86_64::idle;

const TRAP: u64 = 0x100;
const IF: u64 = 0x200;
/// What an interrupt saves of the segments; nobody looks at them.
const CODE: u64 = 8;
const STACK: u64 = 0;

/// What the upcall's interrupt leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Handler {
    /// The handler of the crate, executed. It leaves the event to the main loop.
    Entry,
    /// A kernel's own, which dispatches the event and returns where `resume_at` says.
    Own,
    /// One that dispatches and returns to where it came from.
    Forgetful,
}

/// The processor, before it runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Processor {
    pub(super) handler: Handler,
    /// Whether interrupts are on.
    pub(super) interrupts: bool,
    /// For how many instructions after `sti` they do not come through yet.
    pub(super) shadow: u32,
    /// Before which instruction an event comes. None, or one that is not reached: when the processor halts.
    pub(super) event: Option<u32>,
}

/// What happened.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Outcome {
    /// Instructions, without those of interrupt handlers.
    pub(super) steps: u32,
    /// The processor halted.
    pub(super) slept: bool,
    /// It did so although the event had come.
    pub(super) lost: bool,
    /// Interrupts that were delivered.
    pub(super) delivered: u32,
    /// One of them did not return to where it came from.
    pub(super) moved: bool,
    /// Whether interrupts are on in the end.
    pub(super) interrupts: bool,
}

struct State {
    machine: Processor,
    outcome: Outcome,
    /// It waits for its interrupt: until that is delivered, or, with `Entry`, until the main loop would look.
    asserted: bool,
    interrupts: bool,
    shadow: u32,
    /// Where the interrupt came from, while the handler is executed.
    inside: Option<u64>,
}

struct Place(UnsafeCell<Option<State>>);

// SAFETY: `run` lets one thread at a time use the place, and that thread's signal handler while nothing else does.
unsafe impl Sync for Place {}

static STATE: Place = Place(UnsafeCell::new(None));
static RUNS: AtomicBool = AtomicBool::new(false);
/// The event has come.
static CAME: AtomicBool = AtomicBool::new(false);

/// The main loop's last look: whether the event has come.
pub(super) fn is_due() -> bool {
    CAME.load(SeqCst)
}

/// Whether interrupts are on.
pub(super) fn interrupts() -> bool {
    // SAFETY: called by the code that runs on the processor; the handler of a step runs between two instructions of it,
    // and this reads one byte.
    unsafe { (*STATE.0.get()).as_ref().is_some_and(|state| (&raw const state.interrupts).read_volatile()) }
}

impl Processor {
    /// Runs code.
    #[inline(never)]
    pub(super) fn run(self, code: impl FnOnce()) -> Outcome {
        static TURN: Mutex<()> = Mutex::new(());
        static HANDLER: Once = Once::new();
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        HANDLER.call_once(|| {
            // SAFETY: zero is a valid `sigaction`, whose fields are then set; the handler has the signature that
            // SA_SIGINFO asks for.
            unsafe {
                let mut action: libc::sigaction = core::mem::zeroed();
                action.sa_sigaction = on_step as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO;
                assert_eq!(libc::sigaction(libc::SIGTRAP, &action, core::ptr::null_mut()), 0);
            }
        });
        let state = State {
            machine: self,
            outcome: Outcome::default(),
            asserted: false,
            interrupts: self.interrupts,
            shadow: 0,
            inside: None,
        };
        // SAFETY: this thread has the turn, and no step is taken yet.
        unsafe { *STATE.0.get() = Some(state) };
        CAME.store(false, SeqCst);
        RUNS.store(true, SeqCst);
        // SAFETY: sets the trap flag, which the handler clears.
        unsafe { core::arch::asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
        code();
        RUNS.store(false, SeqCst);
        // SAFETY: as above; no step is taken any more.
        let state = unsafe { (*STATE.0.get()).take() }.expect("it ran");
        Outcome { interrupts: state.interrupts, ..state.outcome }
    }
}

/// Before each instruction.
extern "C" fn on_step(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands the interrupted context to the handler of a signal with SA_SIGINFO.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    // SAFETY: the code that runs on the processor is between two instructions, see `interrupts` for what it reads.
    let state = unsafe { &mut *STATE.0.get() };
    match state {
        Some(state) if RUNS.load(SeqCst) => state.step(registers),
        _ => registers[libc::REG_EFL as usize] &= !(TRAP as i64),
    }
}

type Registers = [libc::greg_t; 23];

fn push(registers: &mut Registers, value: u64) {
    let rsp = registers[libc::REG_RSP as usize] - 8;
    registers[libc::REG_RSP as usize] = rsp;
    // SAFETY: the place is below the stack pointer of code that expects something to be pushed there.
    unsafe { core::ptr::with_exposed_provenance_mut::<u64>(rsp as usize).write(value) };
}

impl State {
    /// Goes to the next instruction that is executed, which is then the one that the trap comes after.
    fn step(&mut self, registers: &mut Registers) {
        while self.emulate(registers) {}
    }

    /// Delivers the interrupt, or emulates the next instruction. False: neither is to be done.
    fn emulate(&mut self, registers: &mut Registers) -> bool {
        let rip = registers[libc::REG_RIP as usize] as u64;
        if self.inside.is_none() {
            if self.machine.event == Some(self.outcome.steps) && !is_due() {
                self.event();
            }
            if self.asserted && self.interrupts && self.shadow == 0 {
                self.deliver(registers, rip);
                return true;
            }
            self.outcome.steps += 1;
        }
        self.shadow = self.shadow.saturating_sub(1);
        // SAFETY: the instruction pointer points to code, which is readable; two bytes may not be left in its page only
        // at the very end of the program's code, which is no function's.
        let code = unsafe { core::ptr::with_exposed_provenance::<[u8; 2]>(rip as usize).read() };
        registers[libc::REG_RIP as usize] += 1;
        match code {
            // sti
            [0xFB, _] => {
                self.shadow = if self.interrupts { 0 } else { self.machine.shadow };
                self.interrupts = true;
            }
            // cli
            [0xFA, _] => self.interrupts = false,
            // hlt
            [0xF4, _] => {
                self.outcome.slept = true;
                self.outcome.lost |= is_due() || !self.interrupts || self.shadow > 0;
                if !is_due() {
                    self.event();
                }
            }
            // pushfq
            [0x9C, _] => {
                let flags = registers[libc::REG_EFL as usize] as u64 & !(TRAP | IF);
                push(registers, flags | if self.interrupts { IF } else { 0 });
            }
            // iretq: to the same segments, as `deliver` came from.
            [0x48, 0xCF] => {
                let frame = registers[libc::REG_RSP as usize] as usize;
                // SAFETY: `deliver` put the frame there.
                let [to, _, flags, rsp, _] =
                    unsafe { core::ptr::with_exposed_provenance::<[u64; 5]>(frame).read() };
                self.interrupts = flags & IF != 0;
                self.outcome.moved |= self.inside.take() != Some(to);
                registers[libc::REG_RIP as usize] = to as i64;
                registers[libc::REG_RSP as usize] = rsp as i64;
                registers[libc::REG_EFL as usize] = (flags | TRAP) as i64;
            }
            _ => {
                registers[libc::REG_RIP as usize] -= 1;
                return false;
            }
        }
        true
    }

    fn event(&mut self) {
        CAME.store(true, SeqCst);
        self.asserted = true;
    }

    /// The interrupt, whose handler returns to `rip` if it changes nothing.
    fn deliver(&mut self, registers: &mut Registers, rip: u64) {
        self.outcome.delivered += 1;
        // The handler returns with interrupts on. That is seen, and need not go on for ever.
        self.asserted &= self.outcome.delivered < 8;
        let to = match self.machine.handler {
            Handler::Entry => {
                let (rsp, flags) =
                    (registers[libc::REG_RSP as usize], registers[libc::REG_EFL as usize] as u64);
                registers[libc::REG_RSP as usize] = rsp & !15;
                for value in [STACK, rsp as u64, flags | IF, CODE, rip] {
                    push(registers, value);
                }
                self.inside = Some(rip);
                self.interrupts = false;
                idle::upcall_entry() as u64
            }
            Handler::Own => {
                self.asserted = false;
                let to = idle::resume_at(rip);
                self.outcome.moved |= to != rip;
                to
            }
            Handler::Forgetful => {
                self.asserted = false;
                rip
            }
        };
        registers[libc::REG_RIP as usize] = to as i64;
    }
}
