//! A line for each check, and their sum.

use alloc::format;
use alloc::string::String;
use core::cell::Cell;
use core::fmt::{self, Debug, Display};
use core::time::Duration;

use xen_hypercall::Errno;
use xen_rt::console;

/// Why a check failed. Made of whatever can be shown, by `?`.
#[derive(Debug)]
pub struct Failure(pub String);

impl<E: Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(format!("{error}"))
    }
}

/// Ends a check as failed, with a text, unless a condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err($crate::Failure($crate::format!($($why)+)));
        }
    };
}
/// How the checks went so far.
#[derive(Debug)]
pub struct Report {
    name: &'static str,
    passed: u32,
    failed: u32,
    /// Lines that the console's reader did not make room for in time.
    lost: Cell<u32>,
}

/// How long a line waits for room. Every line counts, and a machine with much else to do reads late.
const PATIENCE: Duration = Duration::from_secs(60);

impl Report {
    /// Begins; `name` is the kernel's.
    pub fn new(name: &'static str) -> Self {
        Self { name, passed: 0, failed: 0, lost: Cell::new(0) }
    }

    /// To the console, and waits for room there; without one, to Xen's.
    fn say(&self, line: &str) {
        match console::write(format_args!("{line}\n"), PATIENCE) {
            Some(written) => self.lost.set(self.lost.get() + u32::from(!written)),
            None => console::early(format_args!("{line}\n")),
        }
    }

    /// A check.
    pub fn check(&mut self, name: &str, check: impl FnOnce() -> Result<(), Failure>) {
        match check() {
            Ok(()) => self.passes(&format!("ok {name}")),
            Err(Failure(why)) => self.fails(name, &why),
        }
    }

    /// A call that Xen has to refuse, and why.
    pub fn refused<T: Debug>(&mut self, name: &str, result: Result<T, Errno>, wanted: Errno) {
        match result {
            Err(errno) if errno == wanted => self.passes(&format!("refused {name}: {errno:?} as expected")),
            other => self.fails(name, &format!("{other:?} in place of {wanted:?}")),
        }
    }

    /// A call that is for the first domain alone.
    pub fn privileged<T: Debug>(&mut self, first: bool, name: &str, result: Result<T, Errno>) {
        if first {
            self.check(name, || Ok(result.map(drop)?))
        } else {
            self.refused(name, result, Errno::EPERM)
        }
    }

    /// Something other than a bare call that has to fail with this error.
    pub fn fails_with<T: Debug, E: Debug + PartialEq>(
        &mut self,
        name: &str,
        result: Result<T, E>,
        wanted: impl FnOnce(&E) -> bool,
    ) {
        match result {
            Err(error) if wanted(&error) => self.passes(&format!("refused {name}: {error:?} as expected")),
            other => self.fails(name, &format!("{other:?}")),
        }
    }

    fn passes(&mut self, line: &str) {
        self.passed += 1;
        self.say(line);
    }

    fn fails(&mut self, name: &str, why: &str) {
        self.failed += 1;
        self.say(&format!("FAILED {name}: {why}"));
    }

    /// What cannot be checked here, and why.
    pub fn lacking(&self, name: &str, why: &str) {
        self.say(&format!("lacking {name}: {why}"));
    }

    /// A line that says more.
    pub fn note(&self, line: fmt::Arguments<'_>) {
        self.say(&format!("{line}"));
    }

    /// The last line. One that was lost is a failure: nobody has seen how its check went.
    pub fn end(&mut self) {
        match self.lost.get() {
            0 => {}
            lost => self.fails("console", &format!("{lost} lines found no room in {PATIENCE:?}")),
        }
        self.say(&format!("{}: {} passed, {} failed", self.name, self.passed, self.failed));
    }
}
