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
    Run(xtask::run::Args),
    Build(xtask::image::Args),
    New(xtask::new::Args),
    Size(xtask::size::Args),
    Test(xtask::check::Args),
    E2e(xtask::e2e::Args),
    Abi(xtask::abi::Args),
    Bench(xtask::bench::Args),
    Fuzz(xtask::fuzz::Args),
    Bed(xtask::bed::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => xtask::run::run(&args),
        Command::Build(args) => xtask::image::run(&args),
        Command::New(args) => xtask::new::run(&args),
        Command::Size(args) => xtask::size::run(&args),
        Command::Test(args) => xtask::check::run(&args),
        Command::E2e(args) => xtask::e2e::run(&args),
        Command::Abi(args) => xtask::abi::run(&args),
        Command::Bench(args) => xtask::bench::run(&args),
        Command::Fuzz(args) => xtask::fuzz::run(&args),
        Command::Bed(args) => xtask::bed::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
