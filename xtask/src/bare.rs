//! Builds of the libraries for machines without an operating system.

use std::process::Command;

use anyhow::Result;

use crate::check::Library;
use crate::toolchain::Toolchain;

/// What the libraries are built for.
pub(crate) const TARGETS: [&str; 2] = ["x86_64-unknown-none", "aarch64-unknown-none"];

/// The command that builds the libraries for `target`.
pub(crate) fn build(target: &str, libraries: &[Library]) -> Result<Command> {
    let mut cargo = Toolchain::bare(target)?.cargo("build", target);
    for library in libraries {
        cargo.args(["--package", library.name]);
    }
    Ok(cargo)
}
