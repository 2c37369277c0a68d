//! Counts instructions per slot, in Rust and in C, under callgrind.

use std::process::{Command, ExitCode};
use std::ptr::NonNull;

use ring_bench::{Ends, Page, rust};

/// Rounds of a run, and slots in each: half a block device's ring, so that the indices wrap.
const ROUNDS: usize = 1000;
const BATCH: usize = 16;

const FUNCTIONS: [&str; 4] = ["push", "back_pop", "back_push", "pop"];
const RINGS: [(&str, &str); 2] = [("net", "12 and 4 bytes"), ("blk", "112 and 16 bytes")];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--work", side, ring] => work(side, ring),
        [] => compare(),
        _ => Err("usage: ring-bench (without arguments)".into()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ring-bench: {error}");
            ExitCode::from(2)
        }
    }
}

/// Prints the table; answers whether batches need no more instructions than C anywhere.
fn compare() -> Result<bool, String> {
    if !cfg!(ring_h) {
        println!("built without xen/io/ring.h: Rust alone");
    }
    println!("instructions per slot, {ROUNDS} batches of {BATCH}, with publish or arm of the batch");
    println!("{:14}{:>8}{:>16}{:>16}", "", "C", "Rust: one by one", "batch");
    let mut good = true;
    for (ring, size) in RINGS {
        println!("{ring}, slots of {size}");
        for function in FUNCTIONS {
            let [one, batch] = [count("rust", ring, function)?, count("batch", ring, function)?];
            if cfg!(ring_h) {
                let c = count("c", ring, function)?;
                good &= batch <= c;
                let (one_ratio, batch_ratio) = (one / c, batch / c);
                println!("  {function:12}{c:8.2}{one:9.2} ({one_ratio:.2}){batch:9.2} ({batch_ratio:.2})");
            } else {
                println!("  {function:12}{:8}{one:16.2}{batch:16.2}", "-");
            }
        }
    }
    Ok(good)
}

/// Runs this program again under callgrind, which counts while a function runs.
fn count(side: &str, ring: &str, function: &str) -> Result<f64, String> {
    let me = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--toggle-collect={side}_{ring}_{function}"))
        .arg(me)
        .args(["--work", side, ring])
        .output()
        .map_err(|error| format!("cannot start valgrind (package valgrind): {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected =
        text.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse::<u64>().ok());
    match collected {
        Some(count @ 1..) if output.status.success() => Ok(count as f64 / (ROUNDS * BATCH) as f64),
        _ => Err(format!("valgrind counts nothing for {side}_{ring}_{function}:\n{text}")),
    }
}

fn work(side: &str, ring: &str) -> Result<bool, String> {
    let mut page = Box::new(Page([0; 4096]));
    let page = NonNull::from(&mut *page);
    match (side, ring) {
        // SAFETY: the page outlives the rings, which are dropped by `rounds`, and has one user.
        ("rust", "net") => rounds(unsafe { rust::Rings::<rust::Net>::new(page, u32::MAX - 999) }),
        // SAFETY: as above.
        ("rust", "blk") => rounds(unsafe { rust::Rings::<rust::Blk>::new(page, u32::MAX - 999) }),
        // SAFETY: as above.
        ("batch", "net") => rounds(unsafe { rust::Batches::<rust::Net>::new(page, u32::MAX - 999) }),
        // SAFETY: as above.
        ("batch", "blk") => rounds(unsafe { rust::Batches::<rust::Blk>::new(page, u32::MAX - 999) }),
        #[cfg(ring_h)]
        // SAFETY: as above.
        ("c", "net") => rounds(unsafe { ring_bench::c::Net::new(page, u32::MAX - 999, true) }),
        #[cfg(ring_h)]
        // SAFETY: as above.
        ("c", "blk") => rounds(unsafe { ring_bench::c::Blk::new(page, u32::MAX - 999, true) }),
        _ => return Err(format!("no ring {ring} in {side}")),
    }
    Ok(true)
}

fn rounds<Req: Copy + Default + PartialEq, Rsp: Copy + Default>(mut ends: impl Ends<Req, Rsp>) {
    let (mut requests, mut responses) = ([Req::default(); BATCH], [Rsp::default(); BATCH]);
    for _ in 0..ROUNDS {
        let all = BATCH as u32;
        assert_eq!(ends.push(&requests), (all, true));
        assert_eq!(ends.back_pop(&mut requests), (all, false));
        assert_eq!(ends.back_push(&responses), (all, true));
        assert_eq!(ends.pop(&mut responses), (all, false));
    }
}
