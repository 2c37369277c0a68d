//! A guest that answers each line, on a mock console. What you type is typed into the console; an end of input
//! (Ctrl-D) ends it.
//!
//!     cargo run -p xen-console --example echo

mod echo;

use std::io::{stdin, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    match echo::run(stdin().lock(), &mut stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo: {error}");
            ExitCode::FAILURE
        }
    }
}
