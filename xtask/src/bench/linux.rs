//! `cargo xtask bench linux`: the unikernel and a Linux guest in turns, in one boot of Xen and dom0, each alone on the
//! same bridge and the same disk. The load comes from dom0, so only the guest and its backends are in the way.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::figures::{Figure, Figures};
use super::{block, metrics, peer};
use crate::dom0::{Dom0, Options};
use crate::fat;
use crate::image::{self, kib};
use crate::web::Site;

/// No single step takes this long, on the slowest bed.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// How often a step, a guest's turn and the boot of Xen are tried. On a busy machine one may take longer than it has.
const TRIES: u32 = 3;
/// The large file's size, and that of a body made up.
const LARGE: usize = 8 << 20;
/// How long the load of one measurement lasts.
const SECONDS: u32 = 4;
/// What is counted in the unikernel.
const COUNTERS: [&str; 6] = [
    "xen_hypercalls_total",
    "xen_notifications_total",
    "xen_upcalls_total",
    "net_rx_frames_total",
    "net_tx_frames_total",
    "net_copied_bytes_total",
];

/// One of the two guests.
pub(super) struct Subject {
    pub(super) name: &'static str,
    pub(super) address: &'static str,
    /// Where it gives 8 MiB that are on no disk, and where it takes what nobody wants.
    made: &'static str,
    sink: (&'static str, &'static str),
    last: u8,
    boot: &'static str,
    pub(super) memory: u32,
    /// Less memory to try, in MiB, from much to little.
    less: &'static [u32],
}

pub(super) const SUBJECTS: [Subject; 2] = [
    Subject {
        name: "unikernel",
        address: "10.0.0.2",
        made: "/-/bytes/8388608",
        sink: ("10.0.0.2", "/-/discard"),
        last: 2,
        boot: "kernel='/unikernel'\nextra='ip=10.0.0.2/24'",
        memory: 16,
        less: &[12, 10, 8, 7, 6, 5, 4, 3],
    },
    Subject {
        name: "linux",
        address: "10.0.0.3",
        made: "/memory/8388608",
        sink: ("10.0.0.3:8080", "/"),
        last: 3,
        boot: "kernel='/vmlinux'\nramdisk='/peer.gz'\nextra='console=hvc0 quiet panic=-1 mitigations=off'",
        memory: 192,
        less: &[160, 128, 112, 96, 88, 80, 72, 64],
    },
];

impl Subject {
    fn config(&self, memory: u32) -> String {
        let Self { name, last, boot, .. } = self;
        format!(
            "name='{name}'\ntype='pvh'\n{boot}\nmemory={memory}\nvcpus=1\ntsc_mode='native'\n\
             vif=['bridge=xenbr0,mac=00:16:3e:00:00:0{last}']\ndisk=['phy:/dev/vda,xvda,w']\n"
        )
    }
}

/// Everything that dom0 is given.
pub(super) struct Given {
    disk: PathBuf,
    files: [(&'static str, Vec<u8>); 5],
}

impl Given {
    pub(super) fn boot(&self) -> Result<Dom0> {
        let dom0 = Dom0::boot(&Options {
            disk: Some(self.disk.clone()),
            dom0_memory: Some(1024),
            ..Options::default()
        })?;
        for (path, bytes) in &self.files {
            dom0.put(path, bytes)?;
        }
        let script = "chmod +x /load\n\
             for n in 2 3; do\n\
               ip neigh replace 10.0.0.$n lladdr 00:16:3e:00:00:0$n dev xenbr0 || exit 1\n\
             done";
        again("dom0's preparations", || dom0.run(script, PATIENCE))?;
        Ok(dom0)
    }
}

/// Measures both, and prints a table.
pub(super) fn compare(rounds: u32) -> Result<()> {
    tell(|given, figures| measure_all(given, rounds, figures))
}

/// The same for the disk alone.
pub(super) fn compare_disks(rounds: u32) -> Result<()> {
    tell(|given, figures| {
        again("the disk", || {
            // Those of a boot of Xen that failed do not count.
            let mut found = Figures::default();
            block::compare(&given.boot()?, rounds, &mut found)?;
            *figures = found;
            Ok(())
        })
    })
}

/// How both move to another domain.
pub(super) fn compare_moves(rounds: u32) -> Result<()> {
    tell(|given, figures| super::migrate::measure(given, rounds, figures))
}

fn tell(measure: impl FnOnce(&Given, &mut Figures) -> Result<()>) -> Result<()> {
    let load = crate::image::load()?;
    let peer = peer::build(&load)?;
    let image = image::build(&image::Options { quiet: true, ..image::Options::default() })?;
    let disk = image::out_dir()?.join("bench-linux.img");
    fat::image(&disk, 32, &[("SMALL.TXT", &[b'x'; 512]), ("LARGE.BIN", &vec![0x5A; LARGE])])?;
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let given = Given {
        disk,
        files: [
            ("/unikernel", read(&image.path)?),
            ("/vmlinux", read(&peer.kernel)?),
            ("/peer.gz", read(&peer.initramfs)?),
            ("/load", read(&load)?),
            ("/drivers", block::kernel()?),
        ],
    };
    println!(
        "image: unikernel {}; Linux {} and {} of initramfs with busybox and nginx",
        kib(image::size(&image.path)?),
        kib(image::size(&peer.packed)?),
        kib(image::size(&peer.initramfs)?)
    );
    let mut figures = Figures::default();
    let end = measure(&given, &mut figures);
    figures.print(SUBJECTS.map(|subject| subject.name));
    end
}

/// Tries a few times.
pub(super) fn again<T>(what: &str, mut f: impl FnMut() -> Result<T>) -> Result<T> {
    let mut tries = 1;
    loop {
        match f() {
            Err(error) if tries < TRIES => {
                let why = format!("{error:#}");
                println!("{what} is tried again: {}", why.lines().take(6).collect::<Vec<_>>().join(" / "));
                tries += 1;
            }
            other => return other,
        }
    }
}

fn measure_all(given: &Given, rounds: u32, figures: &mut Figures) -> Result<()> {
    let mut dom0 = given.boot()?;
    // The first round warms up both, and the disk's image on this machine; it does not count.
    for round in 0..=rounds {
        // Who is first changes, so that neither always finds the machine as the other left it.
        for turn in 0..2 {
            let which = ((round + turn) % 2) as usize;
            let subject = &SUBJECTS[which];
            let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
            let load = load.split(' ').next().unwrap_or_default().to_owned();
            println!("round {round} of {rounds}, {}, load of this machine {load}", subject.name);
            let mut anew = 0;
            let found = loop {
                let found = again(subject.name, || measure(&dom0, subject, which == 0 && round == 1));
                match found {
                    Err(error) if anew < TRIES => {
                        println!("Xen is booted again: {error:#}");
                        anew += 1;
                        drop(dom0);
                        dom0 = again("the boot", || given.boot())?;
                    }
                    other => break other?,
                }
            };
            for (figure, value) in found {
                println!("  {:<58} {value:>10.3}", figure.name());
                if round > 0 {
                    figures.add(figure, which, value);
                }
            }
        }
    }
    for subject in &SUBJECTS {
        println!("{} works with {} MiB and not with less", subject.name, least(&dom0, subject)?);
    }
    Ok(())
}

/// Starts one of the guests, does something with it, and ends it.
pub(super) fn with_guest<T>(
    dom0: &Dom0,
    subject: &Subject,
    memory: u32,
    f: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let name = subject.name;
    dom0.put(&format!("/{name}.cfg"), subject.config(memory).as_bytes())?;
    // What a try before this one left behind goes first.
    let create = format!(
        "xl destroy {name} 2>/dev/null && sleep 1; : >/var/log/xen/guest-{name}.log; xl create -p /{name}.cfg"
    );
    let result = dom0.run(&create, PATIENCE).and_then(|_| f());
    let end = dom0.sh(&format!("xl destroy {name}; sleep 1"), PATIENCE);
    let console = || dom0.sh(&format!("tail -n 8 /var/log/xen/guest-{name}.log"), PATIENCE);
    let result = result
        .with_context(|| console().map_or_else(|e| e.to_string(), |out| out.stdout.replace('\r', "")))?;
    end.map(|_| result)
}

/// Runs the load generator in dom0, and returns its figures.
fn run(dom0: &Dom0, words: &str) -> Result<Vec<f64>> {
    let text = dom0.run(&format!("/load {words}"), PATIENCE)?;
    let line = text.lines().last().unwrap_or_default();
    line.split(' ').map(|word| word.parse().with_context(|| format!("load {words}: {text}"))).collect()
}

/// The least memory with which a guest serves a small and a large file, in MiB.
fn least(dom0: &Dom0, subject: &Subject) -> Result<u32> {
    let Subject { name, address, .. } = subject;
    let mut least = subject.memory;
    for &memory in subject.less {
        let works = || {
            with_guest(dom0, subject, memory, || {
                run(dom0, &format!("boot {name} {address} /SMALL.TXT"))?;
                run(dom0, &format!("requests {address} /SMALL.TXT 16 1"))?;
                run(dom0, &format!("get {address} /LARGE.BIN 4 1"))
            })
        };
        // On a busy machine it may have been too slow the first time.
        if works().or_else(|_| works()).is_err() {
            break;
        }
        least = memory;
    }
    Ok(least)
}

/// Boots one of the guests, takes all its figures, and ends it.
fn measure(dom0: &Dom0, subject: &Subject, counts: bool) -> Result<Vec<(Figure, f64)>> {
    with_guest(dom0, subject, subject.memory, || Turn { dom0, subject, counts, all: Vec::new() }.figures())
}

/// A guest's turn.
struct Turn<'a> {
    dom0: &'a Dom0,
    subject: &'a Subject,
    counts: bool,
    all: Vec<(Figure, f64)>,
}

impl Turn<'_> {
    fn figures(mut self) -> Result<Vec<(Figure, f64)>> {
        let Subject { name, address, made, sink, .. } = *self.subject;
        let [boot] = run(self.dom0, &format!("boot {name} {address} /SMALL.TXT"))?[..] else {
            bail!("no time of the boot")
        };
        self.all.push((Figure::Boot, boot * 1e3));
        // Linux reads a file from its disk once; from then on it has it in memory. That is the state that is measured.
        for path in ["/SMALL.TXT", "/LARGE.BIN"] {
            again("a first request", || run(self.dom0, &format!("get {address} {path} 1 0")))?;
        }
        let ping = again("ping", || ping(self.dom0, address))?;
        self.all.push((Figure::Ping, ping));
        for connections in [1, 16] {
            let words = format!("requests {address} /SMALL.TXT {connections} {SECONDS}");
            let [rate, dom0, guest] = self.load(&words, 1.0)?;
            self.all.extend([
                (Figure::Small(connections), rate),
                (Figure::SmallDom0(connections), dom0),
                (Figure::SmallGuest(connections), guest),
            ]);
        }
        for streams in [1, 4] {
            let (to, path) = sink;
            let (get, put) = (format!("get {address} {made}"), format!("put {to} {path}"));
            for (words, out) in [(get, true), (put, false)] {
                let [rate, dom0, guest] = self.load(&format!("{words} {streams} {SECONDS}"), 1e6)?;
                self.all.extend([
                    (Figure::Bulk { out, streams }, rate),
                    (Figure::BulkDom0 { out, streams }, dom0),
                    (Figure::BulkGuest { out, streams }, guest),
                ]);
            }
        }
        let [rate, ..] = self.load(&format!("get {address} /LARGE.BIN 1 {SECONDS}"), 1e6)?;
        self.all.push((Figure::File, rate));
        Ok(self.all)
    }

    /// One measurement: units per second, and milliseconds of dom0's and of the guest's CPU for each.
    fn load(&self, words: &str, unit: f64) -> Result<[f64; 3]> {
        again(words, || {
            let counters =
                || if self.counts { metrics(&Site::new(self.dom0.http_port())) } else { Ok(BTreeMap::new()) };
            let (counted, before) = (counters()?, self.cpu()?);
            let [rate, count] = run(self.dom0, words)?[..] else { bail!("no figures") };
            let (after, now) = (self.cpu()?, counters()?);
            let count = count / unit;
            if self.counts {
                let more = |name| (now.get(name).unwrap_or(&0) - counted.get(name).unwrap_or(&0)) as f64;
                let each = COUNTERS.map(|name| format!("{name} {:.2}", more(name) / count));
                println!("  {words}, per {}: {}", if unit > 1.0 { "MB" } else { "request" }, each.join(", "));
            }
            let each = |which: usize| (after[which] - before[which]) * 1e3 / count;
            Ok([rate / unit, each(0), each(1)])
        })
    }

    /// The seconds of CPU that dom0 and the guest have used.
    fn cpu(&self) -> Result<[f64; 2]> {
        let text = self.dom0.run("xl list", PATIENCE)?;
        let of = |name: &str| {
            let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
            line.split_whitespace().last()?.parse().ok()
        };
        of("Domain-0").zip(of(self.subject.name)).map(Into::into).with_context(|| format!("xl list: {text}"))
    }
}

/// The median of many pings, in milliseconds.
fn ping(dom0: &Dom0, address: &str) -> Result<f64> {
    let text = dom0.run(&format!("ping -c 200 -i 0.02 {address}"), PATIENCE)?;
    let mut times: Vec<f64> =
        text.lines().filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok()).collect();
    ensure!(times.len() >= 190, "only {} of 200 pings came back:\n{text}", times.len());
    Ok(super::figures::median(&mut times))
}
