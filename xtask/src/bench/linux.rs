//! `cargo xtask bench linux`: the unikernel and a Linux guest in turns, in one boot of Xen and dom0, each alone on the
//! same bridge and the same disk. The load comes from dom0, so only the guest and its backends are in the way.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{metrics, peer};
use crate::dom0::{Dom0, Options};
use crate::fat;
use crate::image::{self, kib};
use crate::web::Site;

/// No single step takes this long, on the slowest bed.
const PATIENCE: Duration = Duration::from_secs(180);
/// The size of the large file and of an upload.
const LARGE: usize = 8 << 20;
/// The size of a disk in MiB: the large file, an upload, and room to receive it before it takes its name.
const DISK: u64 = 32;
/// Small requests of one measurement, on one connection and on sixteen.
const SMALL: [(u32, u32); 2] = [(1, 500), (16, 2000)];
/// Transfers of the large file in one measurement, on one connection and on four.
const BULK: [(u32, u32); 2] = [(1, 6), (4, 12)];
/// What is counted in the unikernel, and in which unit it is told.
const COUNTERS: [&str; 4] =
    ["xen_hypercalls_total", "xen_notifications_total", "xen_upcalls_total", "net_copied_bytes_total"];

/// One of the two guests.
struct Subject {
    name: &'static str,
    address: &'static str,
    config: String,
}

fn config(name: &str, memory: u32, last: u8, boot: &str) -> String {
    format!(
        "name='{name}'\ntype='pvh'\n{boot}\nmemory={memory}\nvcpus=1\ntsc_mode='native'\n\
         vif=['bridge=xenbr0,mac=00:16:3e:00:00:0{last}']\ndisk=['phy:/dev/vda,xvda,w']\n"
    )
}

fn subjects() -> [Subject; 2] {
    let ours = "kernel='/unikernel'\nextra='ip=10.0.0.2/24'";
    let linux = "kernel='/vmlinux'\nramdisk='/peer.gz'\nextra='console=hvc0 quiet panic=-1 mitigations=off'";
    [
        Subject { name: "unikernel", address: "10.0.0.2", config: config("unikernel", 16, 2, ours) },
        Subject { name: "linux", address: "10.0.0.3", config: config("linux", 192, 3, linux) },
    ]
}

/// How a figure is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Figure {
    Boot,
    Ping,
    Small(u32),
    Get(u32),
    Put,
}

impl Figure {
    fn name(self) -> String {
        match self {
            Self::Boot => "unpause to first HTTP answer, ms".into(),
            Self::Ping => "ping, median of 200, ms".into(),
            Self::Small(connections) => format!("512-byte GET, {connections} connections, requests/s"),
            Self::Get(streams) => format!("8 MiB GET, {streams} streams, MB/s"),
            Self::Put => "8 MiB PUT, 1 stream, MB/s".into(),
        }
    }
}

/// Each figure's values, of the unikernel and of Linux.
type Figures = BTreeMap<Figure, [Vec<f64>; 2]>;

/// Measures both, and prints a table.
pub(super) fn compare(rounds: u32) -> Result<()> {
    let peer = peer::build()?;
    let image = image::build(&image::Options { quiet: true, ..image::Options::default() })?;
    let disk = image::out_dir()?.join("bench-linux.img");
    fat::image(&disk, DISK, &[("SMALL.TXT", &[b'x'; 512]), ("LARGE.BIN", &vec![0x5A; LARGE])])?;
    let dom0 = Dom0::boot(&Options { disk: Some(disk), dom0_memory: 1024, ..Options::default() })?;
    dom0.put("/unikernel", &fs::read(&image.path)?)?;
    dom0.put("/vmlinux", &fs::read(&peer.kernel)?)?;
    dom0.put("/peer.gz", &fs::read(&peer.initramfs)?)?;
    dom0.put("/load", &load()?)?;
    dom0.run(
        "chmod +x /load\n\
         for n in 2 3; do\n\
           ip neigh replace 10.0.0.$n lladdr 00:16:3e:00:00:0$n dev xenbr0 || exit 1\n\
         done",
        PATIENCE,
    )?;
    let subjects = subjects();
    for subject in &subjects {
        dom0.put(&format!("/{}.cfg", subject.name), subject.config.as_bytes())?;
    }
    println!(
        "image: unikernel {}, linux {} and initramfs {}",
        kib(image::size(&image.path)?),
        kib(image::size(&peer.packed)?),
        kib(image::size(&peer.initramfs)?)
    );
    println!("memory: unikernel 16 MiB, linux 192 MiB");
    let mut figures = Figures::new();
    for round in 0..rounds {
        // Who is first changes, so that neither always finds the machine as the other left it.
        for turn in 0..2 {
            let which = ((round + turn) % 2) as usize;
            let subject = &subjects[which];
            let counts = which == 0 && round == 0;
            // QEMU's emulation now and then ends one of dom0's programs by a fault of its own.
            let again = |error| {
                eprintln!("{} is measured again: {error:#}", subject.name);
                measure(&dom0, subject, counts)
            };
            let found = measure(&dom0, subject, counts)
                .or_else(again)
                .or_else(again)
                .with_context(|| format!("{} in round {}", subject.name, round + 1))?;
            for (figure, value) in found {
                println!("round {} {:<9} {:<48} {value:>10.2}", round + 1, subject.name, figure.name());
                figures.entry(figure).or_default()[which].push(value);
            }
        }
    }
    print(&mut figures);
    Ok(())
}

/// The load generator, built for dom0, whose C library is this machine's or newer.
fn load() -> Result<Vec<u8>> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| image::workspace().join("target"), Into::into);
    let mut cargo: Command = image::cargo();
    cargo.args(["build", "--quiet", "--release", "--package", "load", "--target-dir"]).arg(&target);
    let status = cargo.status().context("cannot start cargo")?;
    ensure!(status.success(), "the load generator does not build");
    let path = target.join("release/load");
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Boots one of the guests, takes all its figures, and ends it.
fn measure(dom0: &Dom0, subject: &Subject, counts: bool) -> Result<Vec<(Figure, f64)>> {
    let Subject { name, address, .. } = subject;
    let found = figures(dom0, name, address, counts);
    let end = dom0.sh(&format!("xl destroy {name}; sleep 1"), PATIENCE);
    let console = || dom0.sh(&format!("tail -n 20 /var/log/xen/guest-{name}.log"), PATIENCE);
    let found = found.with_context(|| console().map_or_else(|e| e.to_string(), |out| out.stdout))?;
    end.map(|_| found)
}

fn figures(dom0: &Dom0, name: &str, address: &str, counts: bool) -> Result<Vec<(Figure, f64)>> {
    let load = |words: &str| -> Result<Vec<f64>> {
        let text = dom0.run(&format!("/load {words}"), PATIENCE)?;
        let line = text.lines().last().unwrap_or_default();
        line.split(' ').map(|word| word.parse().with_context(|| format!("load {words}: {text}"))).collect()
    };
    let first = |values: Vec<f64>| values.first().copied().context("no figure");
    dom0.run(&format!("xl create -p /{name}.cfg"), PATIENCE)?;
    let mut all = vec![(Figure::Boot, first(load(&format!("boot {name} {address} /SMALL.TXT"))?)? / 1e3)];
    // Linux reads a file from its disk once; from then on it has it in memory. That is the state that is measured.
    for path in ["/SMALL.TXT", "/LARGE.BIN"] {
        load(&format!("get {address} {path} 1 1"))?;
    }
    all.push((Figure::Ping, ping(dom0, address)?));
    let mut counted = Vec::new();
    let mut count = |what: &str, requests: u32, run: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        if !counts {
            return run();
        }
        let site = Site::new(dom0.http_port());
        let before = metrics(&site)?;
        run()?;
        let after = metrics(&site)?;
        let each = COUNTERS.map(|name| {
            let count = after.get(name).unwrap_or(&0) - before.get(name).unwrap_or(&0);
            format!("{name} {:.2}", count as f64 / f64::from(requests))
        });
        counted.push(format!("per request, {what}: {}", each.join(", ")));
        Ok(())
    };
    for (connections, requests) in SMALL {
        count(&format!("512-byte GET, {connections} connections"), requests, &mut || {
            let rate = first(load(&format!("get {address} /SMALL.TXT {connections} {requests}"))?)?;
            all.push((Figure::Small(connections), rate));
            Ok(())
        })?;
    }
    for (streams, requests) in BULK {
        count(&format!("8 MiB GET, {streams} streams"), requests, &mut || {
            match load(&format!("get {address} /LARGE.BIN {streams} {requests}"))?[..] {
                [_, bytes] => all.push((Figure::Get(streams), bytes / 1e6)),
                _ => bail!("no figure"),
            }
            Ok(())
        })?;
    }
    let put = count("8 MiB PUT", 1, &mut || {
        let rate = first(load(&format!("put {address} /UP.BIN {LARGE}"))?)?;
        all.push((Figure::Put, rate / 1e6));
        Ok(())
    });
    // A server that takes no uploads has no figure of them.
    if let Err(error) = put {
        println!("{name}: no upload: {error:#}");
    }
    counted.iter().for_each(|line| println!("{line}"));
    Ok(all)
}

/// The median of many pings, in milliseconds.
fn ping(dom0: &Dom0, address: &str) -> Result<f64> {
    let text = dom0.run(&format!("ping -c 200 -i 0.02 {address}"), PATIENCE)?;
    let mut times: Vec<f64> =
        text.lines().filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok()).collect();
    ensure!(times.len() >= 190, "only {} of 200 pings came back:\n{text}", times.len());
    Ok(median(&mut times))
}

/// Sorts; the middle value, or the mean of the two in the middle. At least one value.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 }
}

fn print(figures: &mut Figures) {
    println!(
        "\n| | unikernel, median (least to most) | Linux, median (least to most) | ratio |\n|---|---|---|---|"
    );
    for (figure, both) in figures {
        let [ours, linux] =
            both.each_mut().map(|values| (median(values), values[0], values[values.len() - 1]));
        let shown = |(middle, least, most): (f64, f64, f64)| format!("{middle:.2} ({least:.2} to {most:.2})");
        println!("| {} | {} | {} | {:.2} |", figure.name(), shown(ours), shown(linux), ours.0 / linux.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
