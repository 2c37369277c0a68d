//! The sample of a kernel outside this workspace: its heart beats for a monitor in dom0.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::lab::Lab;
use crate::guest::{PATIENCE, Spec};
use crate::image;

const KERNEL: &str = "/own-kernel";
const MONITOR: &str = "/own-kernel-monitor";
/// How many beats the monitor answers as they come before it goes.
const BEATS: u32 = 10;

/// The monitor, linked so that it needs nothing of dom0's system.
fn monitor() -> Result<Vec<u8>> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| image::workspace().join("target"), Into::into);
    let package = "own-kernel-monitor";
    let mut cargo = image::cargo();
    cargo.args(["rustc", "--quiet", "--package", package, "--release", "--target-dir"]).arg(&target);
    cargo.args(["--", "-C", "target-feature=+crt-static"]);
    let status = cargo.status().context("cannot start cargo")?;
    ensure!(status.success(), "{package} does not build; cargo says why above");
    let path = Path::new(&target).join("release").join(package);
    std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

pub(super) fn its_heart_beats_for_a_monitor_in_dom0(lab: &mut Lab) -> Result<()> {
    lab.put(KERNEL, image::Options { package: Some("own-kernel"), ..image::Options::default() })?;
    lab.dom0.put(MONITOR, &monitor()?)?;
    lab.dom0.run(&format!("chmod +x {MONITOR}"), PATIENCE)?;
    let spec = Spec { kernel: KERNEL.into(), vif: None, disk: None, watched: true, ..lab.spec() };
    let (guest, _console) = lab.start(&spec)?;
    let id = guest.list()?.context("it is gone")?.id;
    let said = says(lab, id, "own-kernel: page ")?;
    let numbers: Vec<u32> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [page, port] = numbers[..] else { bail!("it says {said:?}") };
    // Nobody answers yet. It beats once a second and sleeps meanwhile: a wait that does not sleep would use all of it.
    let seconds = || -> Result<f64> { Ok(guest.list()?.context("it is gone")?.seconds) };
    let before = seconds()?;
    lab.dom0.run("sleep 4", PATIENCE)?;
    let used = seconds()? - before;
    ensure!(used <= 1.0, "it used {used:.1} s of CPU in 4 s, with nothing to do");

    let text = lab.dom0.run(&format!("{MONITOR} {id} {page} {port} {BEATS}"), PATIENCE)?;
    let beats: Vec<[u32; 2]> = text.lines().filter_map(beat).collect();
    ensure!(beats.len() >= BEATS as usize, "{} beats came in place of {BEATS}:\n{text}", beats.len());
    for pair in beats.windows(2) {
        let [[first, before], [second, after]] = pair else { continue };
        // Those that waited for the monitor are a second apart, the others as far as it wants them to be.
        ensure!(*second == first + 1 && *after >= before + 100, "out of step:\n{text}");
    }
    let said = says(lab, id, "the monitor is gone after ")?;
    ensure!(said.contains(&format!("after {} beats", beats.len())), "it says {said:?}:\n{text}");
    // One that crashed would be kept.
    guest.wait("end in good order", |listed| listed.is_none()).map(drop)
}

/// The numbers of a line of the monitor's: which beat, and for how many milliseconds the guest has lived.
fn beat(line: &str) -> Option<[u32; 2]> {
    let (id, uptime) = line.strip_prefix("beat ")?.strip_suffix(" ms")?.split_once(" at ")?;
    Some([id.parse().ok()?, uptime.parse().ok()?])
}

/// Waits for a line of the domain's in Xen's log, and returns it.
fn says(lab: &Lab, id: u32, words: &str) -> Result<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let log = lab.dom0.run("xl dmesg", PATIENCE)?;
        let line = log.lines().find(|line| line.contains(&format!("(d{id})")) && line.contains(words));
        match line {
            Some(line) => return Ok(line.to_owned()),
            None if Instant::now() > end => bail!("domain {id} does not say {words:?}:\n{log}"),
            None => std::thread::sleep(std::time::Duration::from_millis(100)),
        }
    }
}
