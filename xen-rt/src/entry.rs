//! From the machine to the kernel's `main`, and back.
#![allow(unsafe_code, reason = "names the symbol by which the machine finds the kernel")]

use core::fmt;
use core::time::Duration;

use xen_evtchn::{Error, EventChannels};
use xen_hypercall::sched::ShutdownReason;
use xen_hypercall::{Domain, VcpuId, Wait};

use crate::console;
use crate::machine::{self, Kernel};

/// Says what the kernel's `main` is: a function that takes a [`Guest`] or a [`Boot`], and returns an [`Outcome`] or never.
///
/// ```no_run
/// # #![no_main]
/// use xen_rt::{Exit, Guest};
///
/// xen_rt::entry!(main);
///
/// fn main(guest: Guest) -> Exit {
///     Exit::PowerOff
/// }
/// ```
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        static __XEN_RT_PROGRAM: $crate::__private::Program = $crate::__private::Program {
            name: ::core::env!("CARGO_PKG_NAME"),
            run: |boot| $crate::__private::run(boot, $main),
        };
        $crate::__process!();
    };
}

/// An image has an entry of its own.
#[doc(hidden)]
#[cfg(not(feature = "hosted"))]
#[macro_export]
macro_rules! __process {
    () => {};
}

/// What [`entry!`] makes.
#[derive(Debug)]
pub struct Program {
    /// Of the package.
    pub name: &'static str,
    /// Its `main`.
    pub run: fn(Boot) -> Exit,
}

unsafe extern "Rust" {
    #[link_name = "__XEN_RT_PROGRAM"]
    safe static PROGRAM: Program;
}

/// Runs a kernel's `main`.
pub fn run<T: Start, R: Outcome>(boot: Boot, main: fn(T) -> R) -> Exit {
    main(T::start(boot)).exit()
}

/// Runs the kernel and ends.
pub(crate) fn start(boot: Boot) -> ! {
    exit((PROGRAM.run)(boot))
}

/// The name of the kernel's package.
pub(crate) fn name() -> &'static str {
    PROGRAM.name
}

/// How a kernel ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// The domain ends, and stays off.
    PowerOff,
    /// The domain ends, and the toolstack starts it again.
    Reboot,
    /// The domain ends as crashed; the toolstack does what its `on_crash` says.
    Crash,
}

impl From<Exit> for ShutdownReason {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::PowerOff => Self::POWEROFF,
            Exit::Reboot => Self::REBOOT,
            Exit::Crash => Self::CRASH,
        }
    }
}

/// What `main` may return: an [`Exit`]; nothing, which powers off; or a result, whose error is told and ends as a crash.
pub trait Outcome {
    /// How the domain ends by it.
    fn exit(self) -> Exit;
}

impl Outcome for Exit {
    fn exit(self) -> Exit {
        self
    }
}

impl Outcome for () {
    fn exit(self) -> Exit {
        Exit::PowerOff
    }
}

impl<R: Outcome, E: fmt::Display> Outcome for Result<R, E> {
    fn exit(self) -> Exit {
        match self {
            Ok(outcome) => outcome.exit(),
            Err(error) => crash(format_args!("{error}")),
        }
    }
}

/// Gives the type of an expression that never ends, which has no name that stable Rust knows.
#[doc(hidden)]
pub trait Returns {
    #[doc(hidden)]
    type Type;
}

impl<R> Returns for fn() -> R {
    type Type = R;
}

impl Outcome for <fn() -> ! as Returns>::Type {
    fn exit(self) -> Exit {
        self
    }
}

/// What `main` may take.
pub trait Start {
    /// Makes it.
    fn start(boot: Boot) -> Self;
}

impl Start for Boot {
    fn start(boot: Boot) -> Self {
        boot
    }
}

impl Start for Guest {
    fn start(boot: Boot) -> Self {
        boot.open()
    }
}

/// A domain in which nothing is opened yet: its memory, its clock and its token are there.
#[derive(Debug)]
pub struct Boot {
    domain: &'static Domain<&'static Kernel>,
}

impl Boot {
    pub(crate) fn new(domain: &'static Domain<&'static Kernel>) -> Self {
        Self { domain }
    }

    /// Opens the event channels, with the ABI that suits best, and the console.
    ///
    /// A domain without a console goes on: what is written then goes to Xen's log. One that gets no event channels ends as
    /// a crash.
    pub fn open(self) -> Guest {
        let opened = EventChannels::new(self.domain).and_then(|events| self.with(machine::keep(events)));
        opened.unwrap_or_else(|error| crash(format_args!("no events, or none of the timer: {error}")))
    }

    /// Goes on with event channels that the caller has opened; opens the console on them.
    ///
    /// # Errors
    /// That of the channel by which the timer tells of its end.
    pub fn with(self, events: &'static EventChannels<&'static Kernel>) -> Result<Guest, Error> {
        machine::bind_timer(events, VcpuId(0))?;
        console::open(events);
        Ok(Guest { domain: self.domain, events })
    }

    /// The token of what the domain has once.
    pub fn domain(&self) -> &'static Domain<&'static Kernel> {
        self.domain
    }

    /// The platform.
    pub fn kernel(&self) -> &'static Kernel {
        self.domain.platform()
    }

    /// What the toolstack wants the kernel to know, up to 1023 bytes of it.
    pub fn command_line(&self) -> &'static str {
        self.kernel().command_line()
    }

    /// The domain's memory in bytes, as Xen's map of it says.
    pub fn ram(&self) -> u64 {
        self.kernel().ram()
    }
}

/// A domain that runs: its event channels and its console are open.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    domain: &'static Domain<&'static Kernel>,
    events: &'static EventChannels<&'static Kernel>,
}

impl Guest {
    /// The token of what the domain has once.
    pub fn domain(&self) -> &'static Domain<&'static Kernel> {
        self.domain
    }

    /// The platform.
    pub fn kernel(&self) -> &'static Kernel {
        self.domain.platform()
    }

    /// The event channels.
    pub fn events(&self) -> &'static EventChannels<&'static Kernel> {
        self.events
    }

    /// What the toolstack wants the kernel to know, up to 1023 bytes of it.
    pub fn command_line(&self) -> &'static str {
        self.kernel().command_line()
    }

    /// The domain's memory in bytes, as Xen's map of it says.
    pub fn ram(&self) -> u64 {
        self.kernel().ram()
    }

    /// Time since an arbitrary start; never goes back.
    pub fn now(&self) -> Duration {
        self.kernel().now()
    }

    /// Time since this kernel started.
    pub fn uptime(&self) -> Duration {
        self.now().saturating_sub(self.kernel().started())
    }

    /// Time since 1970-01-01 00:00 UTC.
    pub fn unix_time(&self) -> Duration {
        self.kernel().unix_time()
    }
}

/// Ends the domain, once everything that was said is out or its reader has had ten seconds for it.
pub fn exit(exit: Exit) -> ! {
    console::drain();
    machine::end(exit)
}

/// Tells Xen's log and the console why, and ends the domain as crashed.
pub fn crash(why: fmt::Arguments<'_>) -> ! {
    console::last_words(why);
    machine::end(Exit::Crash)
}

#[cfg(all(feature = "panic-handler", not(feature = "hosted")))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    crash(format_args!("{info}"))
}
