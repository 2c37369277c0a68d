//! `cargo xtask test`: everything that can be checked, and one line that says how it went.

use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::e2e::Choice;
use crate::platform::Arch;
use crate::tally::Tally;
use crate::{abi, bare, e2e, fuzz, host, image, size};

/// Run all tests: format, lints, documentation, unit, property, loom and doc tests, images, then real Xen
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave out the tests on real Xen
    #[arg(long)]
    no_e2e: bool,
    /// Also run all tests of this machine with AddressSanitizer, which needs a nightly toolchain
    #[arg(long)]
    full: bool,
}

/// A crate that others use.
pub(crate) struct Library {
    pub(crate) name: &'static str,
    features: Vec<String>,
    loom: bool,
}

/// The crates that others use.
pub(crate) const LIBRARIES: [&str; 9] = [
    "xen-ring",
    "xen-hypercall",
    "xen-evtchn",
    "xen-gnttab",
    "xen-xenstore",
    "xen-console",
    "xen-netfront",
    "xen-blkfront",
    "xen-rt",
];

/// The packages that are no programs of this machine.
const IMAGES: [&str; 6] = ["unikernel", "selftest", "drivers", "line", "line-console", "own-kernel"];

/// What leaves the images out of a command for the whole workspace.
fn without_images() -> impl Iterator<Item = &'static str> {
    IMAGES.into_iter().flat_map(|package| ["--exclude", package])
}

/// Their features and whether they have a model for loom, as their own files say.
pub(crate) fn libraries() -> Result<Vec<Library>> {
    LIBRARIES
        .into_iter()
        .map(|name| {
            let dir = image::workspace().join(name);
            let manifest = std::fs::read_to_string(dir.join("Cargo.toml"))
                .with_context(|| format!("cannot read the manifest of {name}"))?;
            let features = features(&manifest);
            Ok(Library { name, features, loom: dir.join("tests/loom.rs").is_file() })
        })
        .collect()
}

/// The keys of a manifest's table of features.
fn features(manifest: &str) -> Vec<String> {
    let lines = manifest.lines().skip_while(|line| line.trim() != "[features]").skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    let keys = lines.filter_map(|line| line.split_once('=')).map(|(key, _)| key.trim());
    keys.filter(|key| !key.is_empty() && !key.starts_with('#')).map(str::to_owned).collect()
}

/// Runs commands, and counts what they checked.
#[derive(Default)]
struct Checks(Tally);

impl Checks {
    /// Runs a command that is one check by itself, or as many as it has tests.
    fn run(&mut self, name: &str, command: &mut Command) -> Result<()> {
        println!("== {name}");
        let start = Instant::now();
        let output = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
        let output = output.with_context(|| format!("{name}: cannot start {command:?}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut tally = count(&text);
        if output.status.success() {
            tally.passed = tally.passed.max(1);
        } else {
            print!("{text}");
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            tally.failed = tally.failed.max(1);
        }
        println!("   {tally}  ({:.0} s)", start.elapsed().as_secs_f64());
        self.0 += tally;
        Ok(())
    }

    fn clippy(&mut self) -> Result<()> {
        let args = ["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
        self.run("clippy, everything", &mut cargo(&args))
    }

    fn documentation(&mut self) -> Result<()> {
        let mut doc = cargo(&["doc", "--no-deps", "--workspace", "--all-features"]);
        doc.args(without_images());
        self.run("documentation", doc.env("RUSTDOCFLAGS", "-D warnings"))
    }

    fn tests(&mut self) -> Result<()> {
        let args = ["test", "--workspace", "--all-features", "--no-fail-fast"];
        let mut tests = cargo(&args);
        tests.args(without_images());
        self.run("unit, property and doc tests", &mut tests)
    }

    /// What the fuzz targets begin with, and what they found before.
    fn fuzz_inputs(&mut self) -> Result<()> {
        let mut test = cargo(&["test", "--manifest-path", "fuzz/Cargo.toml"]);
        test.arg("--target-dir").arg(image::workspace().join("target/fuzz-tests"));
        self.run("seeds and regressions of the fuzz targets", &mut test)
    }

    /// The tests of this machine with AddressSanitizer, where there is a toolchain for that.
    fn address_sanitizer(&mut self) -> Result<()> {
        if !fuzz::has_nightly() {
            println!(
                "== AddressSanitizer: left out, it needs a nightly toolchain (rustup toolchain install nightly)"
            );
            return Ok(());
        }
        // Not `image::cargo`: that is the one of the toolchain that runs this.
        let mut test = Command::new("cargo");
        test.current_dir(image::workspace());
        test.args(["+nightly", "test", "--workspace", "--exclude", "xtask"]).args(without_images());
        // A target of its own keeps the sanitizer out of build scripts and macros, which are not ours.
        test.args(["--target", "x86_64-unknown-linux-gnu", "--all-features", "--no-fail-fast"]);
        test.arg("--target-dir").arg(image::workspace().join("target/asan"));
        test.env("RUSTFLAGS", "-Zsanitizer=address").env("RUSTDOCFLAGS", "-Zsanitizer=address");
        // Leaks are found by ptrace: who may not use that says ASAN_OPTIONS=detect_leaks=0.
        if std::env::var_os("ASAN_OPTIONS").is_none() {
            test.env("ASAN_OPTIONS", "detect_leaks=1");
        }
        test.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
        self.run("AddressSanitizer", &mut test)
    }

    /// Each library as its users have it: without any feature, and with each alone.
    fn features(&mut self, libraries: &[Library]) -> Result<()> {
        for Library { name, features, .. } in libraries {
            let lib = ["check", "--package", name, "--lib", "--no-default-features"];
            self.run(&format!("{name} without features"), &mut cargo(&lib))?;
            for feature in features.iter().filter(|name| *name != "default") {
                let mut check = cargo(&lib);
                self.run(&format!("{name} with {feature}"), check.args(["--features", feature]))?;
            }
        }
        Ok(())
    }

    /// Each library as it would be published.
    fn packages(&mut self) -> Result<()> {
        let mut package = cargo(&["package", "--no-verify", "--allow-dirty"]);
        for name in LIBRARIES {
            package.args(["--package", name]);
        }
        package.arg("--target-dir").arg(image::workspace().join("target/package"));
        self.run("the libraries' packages", &mut package)
    }

    fn loom(&mut self, libraries: &[Library]) -> Result<()> {
        for Library { name, .. } in libraries.iter().filter(|library| library.loom) {
            let mut loom = cargo(&["test", "--package", name, "--release", "--test", "loom"]);
            loom.arg("--target-dir").arg(image::workspace().join("target/loom"));
            self.run(&format!("{name} under loom"), loom.env("RUSTFLAGS", "--cfg loom"))?;
        }
        Ok(())
    }

    /// The tests that depend on where vCPUs are told of events, with arm64's layout of `shared_info`: all but vCPU 0 have no place.
    fn arm64_layout(&mut self) -> Result<()> {
        let mut tests = cargo(&["test", "--all-features", "--tests"]);
        tests.args(["--package", "xen-hypercall", "--package", "xen-evtchn"]);
        tests.arg("--target-dir").arg(image::workspace().join("target/layout"));
        tests.env("CARGO_PROFILE_DEV_DEBUG", "0").env("RUSTFLAGS", "--cfg xen_layout=\"aarch64\"");
        self.run("arm64's layout, on the host", &mut tests)
    }

    /// The libraries for machines without an operating system.
    fn bare_metal(&mut self, libraries: &[Library]) -> Result<()> {
        for target in bare::TARGETS {
            self.run(&format!("libraries for {target}"), &mut bare::build(target, libraries)?)?;
        }
        Ok(())
    }

    fn images(&mut self) -> Result<()> {
        for features in ["", "net", "disk", "net,disk"] {
            let mut lints = cargo(&["clippy", "--package", "unikernel", "--profile", "unikernel"]);
            lints.args(["--no-default-features", "--features", features, "--", "-D", "warnings"]);
            self.run(&format!("unikernel with features {features:?}"), &mut lints)?;
        }
        for package in IMAGES.into_iter().filter(|package| *package != "unikernel") {
            let lints = ["clippy", "--package", package, "--profile", "unikernel", "--", "-D", "warnings"];
            self.run(package, &mut cargo(&lints))?;
        }
        // They are processes unless they are told otherwise.
        for package in ["hello", "embassy-kernel"] {
            let mut lints =
                cargo(&["clippy", "--package", package, "--profile", "unikernel", "--no-default-features"]);
            self.run(package, lints.args(["--", "-D", "warnings"]))?;
        }
        Ok(())
    }
}

/// What the lines that Rust's test programs end with add up to.
fn count(output: &str) -> Tally {
    let mut tally = Tally::default();
    for line in output.lines().filter(|line| line.starts_with("test result:")) {
        let count = |word: &str| {
            let before = line.split(word).next()?.trim_end();
            before.rsplit(' ').next()?.parse::<usize>().ok()
        };
        tally += Tally { passed: count(" passed").unwrap_or(0), failed: count(" failed").unwrap_or(0) };
    }
    tally
}

fn cargo(args: &[&str]) -> Command {
    let mut cargo = image::cargo();
    cargo.args(args);
    cargo
}

/// Runs everything; success when nothing failed.
pub fn run(args: &Args) -> Result<ExitCode> {
    let libraries = libraries()?;
    let mut checks = Checks::default();
    checks.run("formatting", &mut cargo(&["fmt", "--all", "--check"]))?;
    checks.clippy()?;
    checks.documentation()?;
    checks.tests()?;
    checks.fuzz_inputs()?;
    if args.full {
        checks.address_sanitizer()?;
    }
    checks.features(&libraries)?;
    checks.packages()?;
    checks.loom(&libraries)?;
    checks.arm64_layout()?;
    checks.bare_metal(&libraries)?;
    checks.images()?;
    let mut tally = checks.0;
    println!("== the image's size");
    tally += size::check()?;
    println!("== the interface against Xen's own headers");
    tally.add(abi::check(false)?);
    println!("== the application as a process, on the mocks");
    tally += host::check()?;
    if !args.no_e2e {
        println!("== end to end, on real Xen");
        let choice = if args.full { Choice::All } else { Choice::Most };
        tally += e2e::run_some(Arch::X86_64, choice)?;
        println!("== the most telling of them on real Xen for arm64");
        tally += e2e::run_some(Arch::Arm64, Choice::Few)?;
    }
    println!("{tally}");
    Ok(tally.exit_code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_tests_are_added_up() {
        let output = "running 3 tests\ntest result: ok. 3 passed; 0 failed; 0 ignored; finished in 0.1s\n\
                      test result: FAILED. 1 passed; 2 failed; 0 ignored\ntest a ... ok";
        assert_eq!(count(output), Tally { passed: 4, failed: 2 });
    }

    #[test]
    fn features_are_the_keys_of_their_table() {
        let manifest = "[features]\n# Said here = there.\nmock = [\"a/b\"]\nlog = [\"dep:log\"]\n\n[dependencies]\nx = \"1\"\n";
        assert_eq!(features(manifest), ["mock", "log"]);
        assert!(libraries().expect("the manifests").iter().any(|library| !library.features.is_empty()));
    }
}
