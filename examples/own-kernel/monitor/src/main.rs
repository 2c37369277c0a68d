//! The monitor of the sample kernel, as a program of a Linux domain 0: the far side of `Heart`, on Linux' own devices for
//! grants and event channels.
//!
//! `own-kernel-monitor DOMAIN PAGE PORT BEATS` answers the beats that it finds and then so many more, prints a line for
//! each, and goes.

#[cfg(target_os = "linux")]
mod linux;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let [domain, page, port, beats] = numbers[..] else {
        eprintln!("usage: own-kernel-monitor DOMAIN PAGE PORT BEATS");
        return ExitCode::from(2);
    };
    match linux::answer(domain, page, port, beats) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the monitor ends: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("this is a program for a Linux domain 0");
    ExitCode::FAILURE
}
