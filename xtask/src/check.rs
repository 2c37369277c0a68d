//! `cargo xtask test`: everything that can be checked, and one line that says how it went.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::{e2e, image};

/// Run all tests: format, lints, documentation, unit, property, loom and doc tests, images, then real Xen
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave out the tests on real Xen
    #[arg(long)]
    no_e2e: bool,
}

/// The crates that others use, and their optional features.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("xen-ring", &[]),
    ("xen-hypercall", &["mock"]),
    ("xen-evtchn", &["mock"]),
    ("xen-gnttab", &["mock"]),
    ("xen-xenstore", &["mock"]),
    ("xen-console", &["mock", "log"]),
    ("xen-netfront", &["mock", "smoltcp-v0-14"]),
    ("xen-blkfront", &["mock", "embedded-sdmmc-v0-10"]),
];

/// Crates with a model for loom, and where their atomics meet.
const LOOM: &[&str] = &["xen-ring", "xen-evtchn", "xen-gnttab"];
const BARE_METAL: &[&str] = &["x86_64-unknown-none", "aarch64-unknown-none"];

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
}

impl Tally {
    /// Runs a command that is one check by itself, or as many as it has tests.
    fn run(&mut self, name: &str, command: &mut Command) -> Result<()> {
        println!("== {name}");
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output();
        let output = output.with_context(|| format!("{name}: cannot start {command:?}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let results = text.lines().filter(|line| line.starts_with("test result:"));
        let (mut passed, mut failed) = (0, 0);
        for line in results {
            let count = |word: &str| {
                let before = line.split(word).next()?.trim_end();
                before.rsplit(' ').next()?.parse::<usize>().ok()
            };
            passed += count(" passed").unwrap_or(0);
            failed += count(" failed").unwrap_or(0);
        }
        if output.status.success() {
            passed = passed.max(1);
        } else {
            print!("{text}");
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            failed = failed.max(1);
        }
        println!("   {passed} passed, {failed} failed");
        self.passed += passed;
        self.failed += failed;
        Ok(())
    }
}

fn cargo(args: &[&str]) -> Command {
    let mut cargo = image::cargo();
    cargo.args(args);
    cargo
}

fn is_installed(target: &str) -> bool {
    let rustc = Command::new("rustc").args(["--print", "target-libdir", "--target", target]).output();
    rustc.is_ok_and(|out| std::path::Path::new(String::from_utf8_lossy(&out.stdout).trim()).is_dir())
}

/// Runs everything; success when nothing failed.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut tally = Tally::default();
    tally.run("formatting", &mut cargo(&["fmt", "--all", "--check"]))?;
    tally.run(
        "clippy, everything",
        &mut cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]),
    )?;
    let mut doc = cargo(&["doc", "--no-deps", "--workspace", "--all-features", "--exclude", "unikernel"]);
    tally.run("documentation", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    tally.run(
        "unit, property and doc tests",
        &mut cargo(&["test", "--workspace", "--exclude", "unikernel", "--all-features", "--no-fail-fast"]),
    )?;
    for (name, features) in LIBRARIES {
        tally.run(&format!("{name} without features"), &mut cargo(&["check", "--package", name]))?;
        for feature in *features {
            let mut check = cargo(&["check", "--package", name, "--features", feature]);
            tally.run(&format!("{name} with {feature}"), &mut check)?;
        }
    }
    for name in LOOM {
        let mut loom = cargo(&["test", "--package", name, "--release", "--test", "loom"]);
        loom.arg("--target-dir").arg(image::workspace().join("target/loom"));
        tally.run(&format!("{name} under loom"), loom.env("RUSTFLAGS", "--cfg loom"))?;
    }
    for target in BARE_METAL {
        if !is_installed(target) {
            println!("== {target}: not installed, left out");
            continue;
        }
        let mut build = cargo(&["build", "--target", target]);
        LIBRARIES.iter().for_each(|(name, _)| drop(build.args(["--package", name])));
        tally.run(&format!("libraries for {target}"), &mut build)?;
    }
    for features in ["", "net", "disk", "net,disk"] {
        let mut build = cargo(&["clippy", "--package", "unikernel", "--profile", "unikernel", "--no-default-features"]);
        build.args(["--features", features, "--", "-D", "warnings"]);
        tally.run(&format!("unikernel with features {features:?}"), &mut build)?;
    }
    if !args.no_e2e {
        println!("== end to end, on real Xen");
        let real = e2e::run_all(None)?;
        tally.passed += real.passed;
        tally.failed += real.failed;
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
