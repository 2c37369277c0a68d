//! Builds for machines without an operating system. Their precompiled core is not part of every toolchain; Debian's own
//! compiler can build it from source.

use std::process::Command;

use crate::check::{Library, is_file};
use crate::image;

/// What the libraries are built for.
pub(crate) const TARGETS: [&str; 2] = ["x86_64-unknown-none", "aarch64-unknown-none"];
/// What to do about a target that cannot be built for.
pub(crate) const MISSING: &str = "this toolchain has no core for it; apt-get install rustc-web cargo-web rust-web-src, or rustup target add";

/// The command that builds the libraries for `target`, if this machine has what that takes.
pub(crate) fn build(target: &str, libraries: &[Library]) -> Option<Command> {
    let mut cargo = if has_core(target) {
        let mut cargo = image::cargo();
        cargo.arg("build");
        cargo
    } else {
        let (cargo, rustc, source) = ("/usr/bin/cargo", "/usr/bin/rustc", "/usr/share/doc/rust-web-src");
        if ![cargo, rustc].into_iter().all(is_file) || !std::path::Path::new(source).is_dir() {
            return None;
        }
        let mut cargo = Command::new(cargo);
        // The variables of the toolchain that runs this would lead Debian's cargo back to it.
        for name in ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTUP_HOME", "RUSTC_WRAPPER"] {
            cargo.env_remove(name);
        }
        cargo.current_dir(image::workspace()).env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
        cargo.args(["build", "-Zbuild-std=core,alloc"]);
        cargo
    };
    cargo.args(["--target", target]).arg("--target-dir").arg(image::workspace().join("target/bare"));
    for library in libraries {
        cargo.args(["--package", library.name]);
    }
    Some(cargo)
}

fn has_core(target: &str) -> bool {
    let dir = Command::new("rustc").args(["--print", "target-libdir", "--target", target]).output();
    dir.is_ok_and(|out| std::path::Path::new(String::from_utf8_lossy(&out.stdout).trim()).is_dir())
}
