//! How many checks passed and failed.

use std::fmt;
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

/// Counts checks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Checks that passed.
    pub passed: usize,
    /// Checks that did not.
    pub failed: usize,
}

impl Tally {
    /// Counts one check.
    pub fn add(&mut self, passed: bool) {
        *self += if passed { Self { passed: 1, failed: 0 } } else { Self { passed: 0, failed: 1 } };
    }

    /// Success when nothing failed.
    pub fn exit_code(self) -> ExitCode {
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Runs a test, shows how it went, and counts it.
pub(crate) fn report(tally: &mut Tally, name: &str, test: impl FnOnce() -> Result<()>) {
    print!("{name:<20}");
    let _ = std::io::stdout().flush();
    let start = Instant::now();
    let result = test();
    let took = start.elapsed().as_secs_f64();
    match result {
        Ok(()) => {
            println!(" ok     {took:5.1} s");
            tally.passed += 1;
        }
        Err(error) => {
            println!(" FAILED {took:5.1} s\n{error:#}\n");
            tally.failed += 1;
        }
    }
}
