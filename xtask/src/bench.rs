//! `cargo xtask bench`: figures of the running unikernel. Counts first: they do not depend on the machine.

mod block;
mod figures;
mod linux;
mod migrate;
mod peer;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::dom0::{Dom0, Options};
use crate::fat;
use crate::image::{self, kib};
use crate::web::Site;

/// Measure: sizes, the unikernel on real Xen, the mocks, the rings, the fuzz targets; all but the last two unless told what
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to measure
    #[arg(value_enum)]
    what: Vec<What>,
    /// Requests of each kind
    #[arg(long, default_value_t = 500)]
    requests: u32,
    /// Rounds of the comparison with Linux
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

const GUEST: &str = "name='bench'\ntype='pvh'\nkernel='/unikernel'\nmemory=16\nvcpus=1\ntsc_mode='native'\n\
    extra='ip=10.0.0.2/24'\nvif=['bridge=xenbr0,mac=00:16:3e:00:00:02']\ndisk=['phy:/dev/vda,xvda,w']\n";

/// A subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// The image's sizes
    Size,
    /// The unikernel on real Xen: boot, requests, hypercalls per request, memory
    Xen,
    /// The unikernel and a Linux guest with nginx in turns, on the same Xen, bridge and disk
    Linux,
    /// The unikernel and a Linux guest are migrated, saved and restored in turns: how long nobody had an answer
    Migrate,
    /// The driver of disks beside Linux' own, in turns, on the same Xen and disk
    Disk,
    /// Frames and requests per second through the drivers and their mocks, on this machine
    Mock,
    /// Instructions: per slot of a ring, against Xen's own macros in C, and per frame and request, against the crate
    /// virtio-drivers (needs valgrind, a C compiler and Xen's headers)
    Ring,
    /// Inputs per second of each fuzz target (needs a nightly toolchain)
    Fuzz,
}

/// From the toolstack's "go" to the first byte of an answer, as dom0 sees it. The neighbour is entered by hand, or the
/// kernel's retries of its question for it, a second apart, would be what is measured.
const BOOT: &str = "ip neigh replace 10.0.0.2 lladdr 00:16:3e:00:00:02 dev xenbr0\n\
    xl create -p /bench.cfg >/dev/null || exit 1\n\
    ask() { exec 3<>/dev/tcp/10.0.0.2/80 && printf 'GET /-/metrics HTTP/1.0\\r\\n\\r\\n' >&3 && read -r line <&3; }\n\
    start=${EPOCHREALTIME/./}\n\
    xl unpause bench & \n\
    for i in {1..200}; do\n\
      (ask) 2>/dev/null & try=$!\n\
      (sleep 0.1; kill $try) 2>/dev/null & guard=$!\n\
      wait $try && { kill $guard; break; }\n\
    done 2>/dev/null\n\
    echo $((${EPOCHREALTIME/./} - start))\n";

/// Measures what was asked for.
pub fn run(args: &Args) -> Result<ExitCode> {
    let all = [What::Size, What::Xen, What::Mock];
    for what in if args.what.is_empty() { &all[..] } else { &args.what } {
        match what {
            What::Size => sizes()?,
            What::Xen => unikernel(args)?,
            What::Linux => linux::compare(args.rounds)?,
            What::Migrate => linux::compare_moves(args.rounds)?,
            What::Disk => linux::compare_disks(args.rounds)?,
            What::Mock => {
                println!("the drivers and their mocks, one thread of this machine");
                program(&["--package", "throughput"], &[])?;
            }
            What::Ring => {
                let headers = crate::abi::headers()?;
                program(&["--package", "ring-bench"], &[("XEN_INCLUDE_DIR", &headers)])?;
            }
            What::Fuzz => crate::fuzz::bench()?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a program of the workspace, compiled for speed, which prints its own figures.
fn program(args: &[&str], environment: &[(&str, &Path)]) -> Result<()> {
    let mut cargo = image::cargo();
    cargo.envs(environment.iter().copied());
    let status =
        cargo.args(["run", "--quiet", "--release"]).args(args).status().context("cannot start cargo")?;
    ensure!(status.success(), "{} failed: {status}", args.join(" "));
    Ok(())
}

fn sizes() -> Result<()> {
    println!("image, stripped");
    for (name, features) in [("console only", Some(vec![])), ("everything", None)] {
        let image = image::build(&image::Options { features, quiet: true, ..image::Options::default() })?;
        println!("  {name:<44} {}", kib(image::size(&image.path)?));
    }
    Ok(())
}

/// Boots once and measures.
fn unikernel(args: &Args) -> Result<()> {
    let image = image::build(&image::Options { quiet: true, ..image::Options::default() })?;
    let disk = image::out_dir()?.join("bench.img");
    fat::image(&disk, 32, &[("SMALL.TXT", &[b'x'; 512]), ("LARGE.BIN", &vec![0x5A; 4 << 20])])?;
    let dom0 = Dom0::boot(&Options { disk: Some(disk), ..Options::default() })?;
    dom0.put("/unikernel", &fs::read(&image.path)?)?;
    dom0.put("/bench.cfg", GUEST.as_bytes())?;
    let boot = dom0.run(BOOT, Duration::from_secs(60))?;
    let micros: f64 =
        boot.lines().last().unwrap_or_default().parse().with_context(|| format!("no boot time: {boot}"))?;
    println!("a domain with memory=16");
    println!("  from the start of `xl unpause` to first HTTP answer {:.3} s", micros / 1e6);
    let site = Site::new(dom0.http_port());
    for (name, path, requests) in [
        ("512-byte file", "/SMALL.TXT", args.requests),
        ("status page", "/-/status", args.requests),
        ("4 MiB file", "/LARGE.BIN", (args.requests / 50).max(1)),
    ] {
        let before = metrics(&site)?;
        let start = Instant::now();
        let mut bytes = 0;
        for _ in 0..requests {
            bytes += site.get(path)?.expect(200)?.body.len();
        }
        let seconds = start.elapsed().as_secs_f64();
        let after = metrics(&site)?;
        println!(
            "{name}: {requests} requests, one connection, {:.0} per second, {:.2} MB/s",
            f64::from(requests) / seconds,
            bytes as f64 / seconds / 1e6
        );
        for counter in
            ["xen_hypercalls_total", "xen_notifications_total", "xen_upcalls_total", "disk_requests_total"]
        {
            let count = after.get(counter).unwrap_or(&0) - before.get(counter).unwrap_or(&0);
            println!("  {counter:<28} {:>10.2} per request", count as f64 / f64::from(requests));
        }
    }
    let now = metrics(&site)?;
    for figure in ["memory_used_bytes", "memory_free_bytes"] {
        println!("{figure:<46} {}", kib(*now.get(figure).unwrap_or(&0)));
    }
    Ok(())
}

/// All figures of the metrics page.
fn metrics(site: &Site) -> Result<BTreeMap<String, u64>> {
    let text = site.get("/-/metrics")?.expect(200)?.text()?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    Ok(lines
        .filter_map(|line| line.rsplit_once(' '))
        .filter_map(|(n, v)| Some((n.to_owned(), v.parse().ok()?)))
        .collect())
}
