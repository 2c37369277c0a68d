//! Prints what the check says; exits with 1 when something disagrees, with 2 when it cannot be checked.

use std::process::ExitCode;

fn main() -> ExitCode {
    match abi_check::run() {
        Ok(report) => {
            print!("{report}");
            if report.outcome.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(reason) => {
            eprintln!("the interface was not checked: {reason}");
            ExitCode::from(2)
        }
    }
}
