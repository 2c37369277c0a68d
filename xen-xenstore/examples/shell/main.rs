//! A browser of a xenstore tree: the guest's side of a mock store with two devices in it.
//!
//!     cargo run -p xen-xenstore --example shell
//!
//! `help` lists the commands. Input may come from a pipe.

mod machine;
mod nodes;
mod shell;

use std::io::{IsTerminal, stdin, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    let prompts = stdin().is_terminal();
    match shell::run(stdin().lock(), &mut stdout().lock(), prompts) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shell: {error}");
            ExitCode::FAILURE
        }
    }
}
