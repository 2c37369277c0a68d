//! `cargo xtask fuzz`: the fuzz targets, by cargo-fuzz; what they find is kept, and how far they got is told.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use anyhow::{Context, Result, bail, ensure};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::image;

/// What a target is built with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
enum Sanitizer {
    /// What safe code does wrong: assertions, panics, overflows. Four times as many inputs in the same time
    #[default]
    None,
    /// AddressSanitizer: what an unsafe block does wrong with memory, too
    Address,
}

impl Sanitizer {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Address => "address",
        }
    }
}

/// Each run makes a machine with some hundred pages: as it is by default, most of the time goes into remembering freed ones
/// and who allocated them, filling pages with a pattern, and comparing names of nodes byte by byte. Frames of functions are
/// not on the heap: what is there to be found are the few unsafe blocks' mistakes with pages.
const ASAN: &str = "quarantine_size_mb=1:malloc_context_size=0:max_malloc_fill_size=256:intercept_memcmp=0:\
    detect_stack_use_after_return=0";

/// Without a sanitizer, the C library's heap keeps what an input's machine gave back for the next one's: the kernel would take it and
/// fill it with zeroes each time.
const MALLOC: [(&str, &str); 3] = [
    ("MALLOC_TRIM_THRESHOLD_", "268435456"),
    ("MALLOC_TOP_PAD_", "16777216"),
    ("MALLOC_MMAP_THRESHOLD_", "268435456"),
];

/// Let a fuzzer try the crates: all targets one after the other, or one
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The target; all if not told
    target: Option<String>,
    /// For how long each is tried
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// How many targets are tried at the same time
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// What else the targets are built to find
    #[arg(long, value_enum, default_value_t)]
    sanitizer: Sanitizer,
}

/// How far a target got.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Progress {
    executions: u64,
    per_second: u64,
    edges: u64,
}

impl Progress {
    /// Takes in a line that libFuzzer prints: `#4096 pulse cov: 812 ft: 3021 corp: 97/3Kb exec/s: 1365 rss: 60Mb`.
    fn take(&mut self, line: &str) -> bool {
        let Some(rest) = line.strip_prefix('#') else { return false };
        let mut words = rest.split_whitespace();
        let Some(Ok(executions)) = words.next().map(str::parse) else { return false };
        self.executions = executions;
        while let Some(word) = words.next() {
            let mut number = || words.next().and_then(|text| text.parse().ok());
            match word {
                "cov:" => self.edges = number().unwrap_or(self.edges),
                "exec/s:" => self.per_second = number().unwrap_or(self.per_second),
                _ => {}
            }
        }
        true
    }

    /// Takes in one of the lines of its end.
    fn take_total(&mut self, line: &str) {
        let number = |name| line.strip_prefix(name)?.trim().parse().ok();
        self.executions = number("stat::number_of_executed_units:").unwrap_or(self.executions);
        self.per_second = number("stat::average_exec_per_sec:").unwrap_or(self.per_second);
    }
}

/// What became of a target.
struct Outcome {
    target: String,
    progress: Progress,
    seconds: f64,
    failed: bool,
}

fn dir() -> PathBuf {
    image::workspace().join("fuzz")
}

/// All targets, as the folder with their programs has them.
fn targets() -> Result<Vec<String>> {
    let path = dir().join("fuzz_targets");
    let entries = fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Whether there is a nightly toolchain.
pub(crate) fn has_nightly() -> bool {
    succeeds("cargo", &["+nightly", "--version"])
}

fn prepare() -> Result<()> {
    if !has_nightly() {
        bail!("fuzzing needs a nightly toolchain: rustup toolchain install nightly --profile minimal");
    }
    if !succeeds("cargo", &["fuzz", "--version"]) {
        println!("installing cargo-fuzz");
        let status = Command::new("cargo").args(["install", "cargo-fuzz", "--locked"]).status()?;
        if !status.success() {
            bail!("cannot install cargo-fuzz: {status}");
        }
    }
    Ok(())
}

/// `cargo +nightly fuzz COMMAND`, with what all of them need.
///
/// Comparisons are not traced: that takes three quarters of the time, and inputs are structured, so that there is little to
/// be learnt from what they are compared with.
fn cargo_fuzz(command: &str, sanitizer: Sanitizer) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(image::workspace());
    cargo.args(["+nightly", "fuzz", command, "--features", "libfuzzer", "--no-trace-compares"]);
    cargo.args(["--sanitizer", sanitizer.name()]);
    cargo.arg("--target-dir");
    cargo.arg(image::workspace().join("target/fuzz"));
    cargo
}

/// How a target is tried.
#[derive(Clone, Copy)]
struct Plan {
    seconds: u32,
    sanitizer: Sanitizer,
    /// Where what it learns goes, in the target folder.
    learnt: &'static str,
    /// What its dice begin with; none: something else each time.
    seed: Option<u32>,
}

/// Starts a target. What it begins with is in `fuzz`, and stays as it is.
fn start(target: &str, plan: Plan) -> Result<Child> {
    let learnt = image::workspace().join("target/fuzz").join(plan.learnt).join(target);
    fs::create_dir_all(&learnt).with_context(|| format!("cannot create {}", learnt.display()))?;
    let mut run = cargo_fuzz("run", plan.sanitizer);
    run.arg(target).arg(learnt);
    let given = ["corpus", "regressions"].map(|kind| dir().join(kind).join(target));
    run.args(given.iter().filter(|path| path.is_dir()));
    run.args([
        "--",
        "-timeout=25",
        "-max_len=1024",
        "-print_final_stats=1",
        "-print_funcs=0",
        "-len_control=0",
        // Its weights are recomputed with every feature of every input, and there are thousands of either: that takes as
        // long as the inputs themselves, and as much is found without.
        "-entropic=0",
        // Nobody else puts inputs into the folder.
        "-reload=0",
    ]);
    run.arg(format!("-max_total_time={}", plan.seconds));
    run.args(plan.seed.map(|seed| format!("-seed={seed}")));
    run.env("ASAN_OPTIONS", ASAN);
    run.envs(MALLOC);
    run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    run.spawn().with_context(|| format!("cannot start {run:?}"))
}

/// Waits for a target, and shows how far it is.
fn follow(target: &str, plan: Plan, bar: &ProgressBar) -> Result<Outcome> {
    const LAST_LINES: usize = 60;
    bar.set_prefix(target.to_owned());
    let begin = Instant::now();
    let mut child = start(target, plan)?;
    let mut progress = Progress::default();
    let mut lines = VecDeque::new();
    let output = child.stderr.take().context("the fuzzer's output")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if progress.take(&line) {
            let Progress { executions, per_second, edges } = progress;
            bar.set_message(format!("{executions} executions, {per_second} per second, {edges} edges"));
            bar.set_position(begin.elapsed().as_secs().min(plan.seconds.into()));
            continue;
        }
        progress.take_total(&line);
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
    let failed = !child.wait()?.success();
    let seconds = begin.elapsed().as_secs_f64();
    bar.finish();
    if failed {
        say(bar, &Vec::from(lines).join("\n"));
    } else if bar.is_hidden() {
        let Progress { executions, per_second, edges } = progress;
        println!("{target}: {executions} executions, {per_second} per second, {edges} edges, {seconds:.0} s");
    }
    Ok(Outcome { target: target.to_owned(), progress, seconds, failed })
}

/// Says something above the bars, or by itself where there is no terminal for them.
fn say(bar: &ProgressBar, text: &str) {
    if bar.is_hidden() { println!("{text}") } else { bar.println(text) }
}

/// What was found so far, and is not a regression test yet.
fn findings(target: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir().join("artifacts").join(target));
    entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn style() -> Result<ProgressStyle> {
    Ok(ProgressStyle::with_template("{prefix:<12} {bar:30} {elapsed:>4} {msg}")?)
}

/// Tries the targets, `jobs` at a time.
fn try_all(targets: &[String], plan: Plan, jobs: usize) -> Result<Vec<Outcome>> {
    let bars = MultiProgress::new();
    let style = style()?;
    let mut outcomes = Vec::new();
    for some in targets.chunks(jobs.max(1)) {
        let results: Vec<Result<Outcome>> = std::thread::scope(|scope| {
            let threads: Vec<_> = some
                .iter()
                .map(|target| {
                    let bar = bars.add(ProgressBar::new(plan.seconds.into()).with_style(style.clone()));
                    bar.enable_steady_tick(Duration::from_secs(1));
                    scope.spawn(move || follow(target, plan, &bar))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
                .collect()
        });
        for result in results {
            outcomes.push(result?);
        }
    }
    Ok(outcomes)
}

/// Builds and tries; success when nothing was found.
pub fn run(args: &Args) -> Result<ExitCode> {
    prepare()?;
    let all = targets()?;
    let targets = match &args.target {
        Some(target) if all.contains(target) => vec![target.clone()],
        Some(target) => bail!("no target {target}; there are {}", all.join(", ")),
        None => all,
    };
    build(args.target.as_deref(), args.sanitizer)?;
    let plan = Plan { seconds: args.seconds, sanitizer: args.sanitizer, learnt: "corpus", seed: None };
    let outcomes = try_all(&targets, plan, args.jobs)?;
    table(&outcomes);
    for path in targets.iter().flat_map(|target| findings(target)) {
        explain(&path, args.sanitizer);
    }
    let failed = outcomes.iter().any(|outcome| outcome.failed);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Builds a target, or all.
fn build(target: Option<&str>, sanitizer: Sanitizer) -> Result<()> {
    let status = cargo_fuzz("build", sanitizer).args(target).status()?;
    ensure!(status.success(), "the targets do not build: {status}");
    Ok(())
}

fn table(outcomes: &[Outcome]) {
    println!("{:<12} {:>12} {:>10} {:>8} {:>8}", "target", "executions", "per second", "edges", "seconds");
    for Outcome { target, progress, seconds, failed } in outcomes {
        let Progress { executions, per_second, edges } = progress;
        let note = if *failed { "  FAILED" } else { "" };
        println!("{target:<12} {executions:>12} {per_second:>10} {edges:>8} {seconds:>8.0}{note}");
    }
}

/// Seconds of a processor that the programs which this one started, and waited for, have taken.
fn processor_time() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("cannot ask for the time that was taken")?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6)
}

/// How fast each target is: a while from what is in the repository, with the same dice each time. Inputs are counted for each
/// second of a processor, so that figures can be compared whatever else the machine has to do.
pub(crate) fn bench() -> Result<()> {
    const FRESH: &str = "bench";
    const PLAN: Plan = Plan { seconds: 20, sanitizer: Sanitizer::None, learnt: FRESH, seed: Some(1) };
    prepare()?;
    build(None, PLAN.sanitizer)?;
    let dir = image::workspace().join("target/fuzz").join(FRESH);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    let mut failed = Vec::new();
    let mut rows = Vec::new();
    for target in targets()? {
        let before = processor_time()?;
        for outcome in try_all(&[target], PLAN, 1)? {
            rows.push((outcome.target.clone(), outcome.progress, processor_time()? - before));
            failed.extend(outcome.failed.then_some(outcome.target));
        }
    }
    println!(
        "{:<12} {:>12} {:>8} {:>12} {:>18}",
        "target", "executions", "edges", "CPU seconds", "per CPU second"
    );
    for (target, Progress { executions, edges, .. }, seconds) in rows {
        let rate = executions as f64 / seconds;
        println!("{target:<12} {executions:>12} {edges:>8} {seconds:>12.1} {rate:>18.0}");
    }
    ensure!(failed.is_empty(), "an input failed; its file is in fuzz/artifacts: {}", failed.join(", "));
    Ok(())
}

/// What to do with an input that fails.
fn explain(path: &Path, sanitizer: Sanitizer) {
    let target = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    println!("\nfound: {}", path.display());
    println!(
        "  smaller:  cargo +nightly fuzz tmin --features libfuzzer --no-trace-compares --sanitizer {} {target} {}",
        sanitizer.name(),
        path.display()
    );
    println!("  to keep:  mv {} fuzz/regressions/{target}/WHAT-IT-SHOWS", path.display());
    println!("  in tests: cargo test --manifest-path fuzz/Cargo.toml --target-dir target/fuzz-tests");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_fuzzer_tell_how_far_it_is() {
        let mut progress = Progress::default();
        assert!(progress.take("#4096\tpulse  cov: 812 ft: 3021 corp: 97/3Kb lim: 48 exec/s: 1365 rss: 60Mb"));
        assert_eq!(progress, Progress { executions: 4096, per_second: 1365, edges: 812 });
        assert!(!progress.take("INFO: Seed: 1234"));
        assert!(!progress.take("    #0 0x55 in main"));
        assert_eq!(progress.executions, 4096);
        progress.take_total("stat::number_of_executed_units: 5000");
        progress.take_total("stat::average_exec_per_sec:     900");
        progress.take_total("stat::new_units_added:          70");
        assert_eq!(progress, Progress { executions: 5000, per_second: 900, edges: 812 });
    }

    #[test]
    fn each_target_has_a_corpus() {
        let targets = targets().expect("the targets");
        assert!(targets.iter().any(|target| target == "netfront"));
        for target in targets {
            assert!(dir().join("corpus").join(&target).is_dir(), "{target}");
        }
    }
}
