//! `cargo xtask COMMAND`: the command line, and nothing else.

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The project's commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bed(xtask::bed::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Bed(args) => xtask::bed::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
