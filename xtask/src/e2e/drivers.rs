//! The drivers' kernel: what blkfront and netfront can do, on Linux' backends.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::devices::{drop_loop_device, loop_device};
use super::lab::{CHECKED, Lab, judge_checks};
use super::suspend;
use crate::dom0::Follow;
use crate::guest::{Guest, PATIENCE, Spec};
use crate::image::Options;
use crate::platform::Arch;

#[path = "../../../examples/drivers/src/pattern.rs"]
mod pattern;

use pattern::{BAD, SECTOR, fill};

const KERNEL: &str = "/drivers";

/// Where dom0's kernel has its backends.
pub(super) const DRIVERS: &str = "/sys/bus/xen-backend/drivers";

/// Starts the kernel with more than one queue offered for each device.
fn spec(lab: &Lab, cmdline: &str, more: String) -> Result<Spec> {
    lab.put(KERNEL, Options { package: Some("drivers"), ..Options::default() })?;
    let queues =
        "for driver in xen_blkback xen_netback; do echo 4 >/sys/module/$driver/parameters/max_queues; done";
    lab.dom0.run(queues, PATIENCE)?;
    let (kernel, cmdline) = (KERNEL.into(), cmdline.into());
    Ok(Spec { kernel, cmdline, memory: 64, vif: None, disk: None, more, ..lab.spec() })
}

/// Has the backend's driver let go of a device, and take it again.
fn restart(lab: &Lab, driver: &str, device: &str) -> Result<()> {
    let script =
        format!("cd {DRIVERS}/{driver} && echo {device} >unbind && sleep 0.2 && echo {device} >bind");
    lab.dom0.run(&script, PATIENCE).map(drop)
}

pub(super) fn disks(lab: &mut Lab) -> Result<()> {
    let mut content = vec![0; 64 * SECTOR];
    fill(0, 1, &mut content);
    lab.dom0.put("/pattern", &content)?;
    let main = loop_device(lab, "", "truncate -s 64M $f")?;
    let fixed = loop_device(lab, "", "cat /pattern >$f")?;
    let large = loop_device(lab, "--sector-size 4096", "truncate -s 4M $f")?;
    let bad = bad_disk(lab)?;
    let more = format!(
        "disk=['phy:{main},xvda,w','phy:{fixed},xvdb,r','phy:{large},xvdc,w','phy:/dev/{bad},xvdd,w']\n"
    );
    // A queue for each of two vCPUs.
    let spec = Spec { vcpus: 2, ..spec(lab, "block", more)? };
    let (guest, mut console) = lab.start(&spec)?;
    let (name, id) = (guest.name(), guest.list()?.context("it is gone")?.id);

    console.wait_for("please distrust xvdc", PATIENCE)?;
    lab.dom0.run(&format!("xenstore-write /local/domain/{id}/device/vbd/51744/trusted 0"), PATIENCE)?;
    console.wait_for("please heal xvdd", PATIENCE)?;
    lab.dom0.run(&format!("echo -{}-{} >{NULL_BLK}/{bad}/badblocks", BAD.start, BAD.end - 1), PATIENCE)?;
    console.wait_for("please grow xvda", PATIENCE)?;
    let grow = format!("truncate -s 96M $(losetup -nO BACK-FILE {main}) && losetup -c {main}");
    lab.dom0.run(&grow, PATIENCE)?;
    console.wait_for("please restart the backend of xvda", PATIENCE)?;
    restart(lab, "vbd", &format!("vbd-{id}-51712"))?;
    lab.dom0.run(&format!("xenstore-write /local/domain/{id}/data/restarted 1"), PATIENCE)?;
    console.wait_for("please unplug xvda", PATIENCE)?;
    lab.dom0
        .run(&format!("xl block-detach {name} xvda && xl block-attach {name} phy:{main},xvda,w"), PATIENCE)?;
    let text = console.wait_for(CHECKED, PATIENCE)?;
    judge_checks("drivers", 32, "the kernel with disks", &text)?;
    if lab.arch == Arch::X86_64 {
        ensure!(text.contains("ok block/a-queue-on-each-vcpu"), "no queue was on another vCPU:\n{text}");
    }
    guest.wait("end", |listed| listed.is_none())?;

    // What the kernel wrote last, as dom0 sees it.
    let said =
        text.lines().find_map(|line| line.trim().strip_prefix("written: ")?.split_once(" sectors, round "));
    let (sectors, round) = said.context("it does not say what it wrote")?;
    let mut right = vec![0; sectors.parse::<usize>()? * SECTOR];
    fill(0, round.parse()?, &mut right);
    lab.dom0.run(&format!("dd if={main} of=/written bs={SECTOR} count={sectors} 2>/dev/null"), PATIENCE)?;
    ensure!(lab.dom0.get("/written")? == right, "dom0 reads something else from {main}");
    drop_null_disk(lab, bad)?;
    [main, fixed, large].iter().try_for_each(|device| drop_loop_device(lab, device))
}

/// Where Linux makes disks out of nothing.
const NULL_BLK: &str = "/sys/kernel/config/nullb";

/// A disk of dom0's memory, of 16 MiB, with these settings.
fn null_disk(lab: &Lab, name: &str, settings: &str) -> Result<()> {
    let script = format!(
        "test -d {NULL_BLK} || mount -t configfs configfs /sys/kernel/config && \
         mkdir {NULL_BLK}/{name} && cd {NULL_BLK}/{name} && echo 1 >memory_backed && echo 16 >size && \
         echo 512 >blocksize && {settings} && echo 1 >power && test -b /dev/{name}"
    );
    lab.dom0.run(&script, PATIENCE).map(drop)
}

fn drop_null_disk(lab: &Lab, name: &str) -> Result<()> {
    lab.dom0.run(&format!("echo 0 >{NULL_BLK}/{name}/power && rmdir {NULL_BLK}/{name}"), PATIENCE).map(drop)
}

/// A disk that fails what touches the bad sectors; returns its name.
fn bad_disk(lab: &Lab) -> Result<&'static str> {
    // The module made the first of them when it was loaded.
    let name = "nullb1";
    null_disk(lab, name, &format!("echo +{}-{} >badblocks", BAD.start, BAD.end - 1))?;
    Ok(name)
}

/// What has a disk suspended while it is at work.
const DISK_LIVES: &str = "migrate,save,checkpoint,migrate";

/// Suspends the guest as it asks for, number by number, and has `then` look at it. Returns all that it said.
fn through_lives(
    lab: &Lab,
    guest: &Guest<'_>,
    console: Follow,
    plan: &str,
    mut then: impl FnMut(&mut Follow, u32) -> Result<()>,
) -> Result<String> {
    let name = guest.name();
    // A domain's log goes by the name that it has when it is made.
    let mut logs = [console, lab.dom0.console(&format!("{name}--incoming"))?];
    let mut current = 0;
    for (number, how) in (1..).zip(plan.split(',')) {
        logs[current].wait_for(&format!("please {how} {number}"), 2 * PATIENCE)?;
        let command = match how {
            "migrate" => suspend::migrate(lab, name)?,
            "save" => suspend::save_and_restore(name),
            _ => suspend::checkpoint(name),
        };
        lab.dom0.run(&command, 2 * PATIENCE)?;
        current = match how {
            "migrate" => 1,
            "save" => 0,
            _ => current,
        };
        then(&mut logs[current], number)?;
    }
    logs[current].wait_for(CHECKED, 2 * PATIENCE)?;
    guest.wait("end", |listed| listed.is_none())?;
    let mut said = String::new();
    for log in &mut logs {
        log.read_more(Duration::from_millis(100))?;
        said += &log.text();
    }
    Ok(said)
}

pub(super) fn disks_in_several_lives(lab: &mut Lab) -> Result<()> {
    // One that takes its time: what was asked for right before the suspend is under way still. It knows no flush; a loop device does.
    let slow = "nullb2";
    null_disk(lab, slow, "echo 2 >irqmode && echo 100000000 >completion_nsec")?;
    let disk = lab.dom0.run(&format!("losetup --direct-io=on -f --show /dev/{slow}"), PATIENCE)?;
    let disk = disk.trim();
    lab.dom0.run(&format!("blockdev --setra 16384 {disk}"), PATIENCE)?;
    let cmdline = format!("block-lives={DISK_LIVES}");
    let (guest, console) = lab.start(&spec(lab, &cmdline, format!("disk=['phy:{disk},xvda,w']\n"))?)?;
    let name = guest.name();
    let text = through_lives(lab, &guest, console, DISK_LIVES, |console, number| {
        let word = format!("please compare {number}: ");
        // All of the line.
        let text = console.wait_for(&format!("compare {number}, as above"), PATIENCE)?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix(&word)).unwrap_or_default();
        let Some((sectors, sum)) = line.split_once(" sectors, sum ") else { bail!("it says {line:?}") };
        let read = format!(
            "blockdev --flushbufs {disk} && dd if={disk} of=/written bs={SECTOR} count={sectors} 2>/dev/null"
        );
        lab.dom0.run(&read, PATIENCE)?;
        let there = format!("{:016x}", pattern::sum(&lab.dom0.get("/written")?, 0));
        ensure!(there == sum, "after suspend {number} dom0 reads something else: {there} in place of {sum}");
        let node = format!("/local/domain/$(xl domid {name})/data/compared");
        lab.dom0.run(&format!("xenstore-write {node} {number}"), PATIENCE).map(drop)
    })?;
    judge_checks("drivers", 40, "the kernel with a disk", &text)?;
    lab.dom0.run(&format!("losetup -d {disk}"), PATIENCE)?;
    drop_null_disk(lab, slow)
}

pub(super) fn cards_in_several_lives(lab: &mut Lab) -> Result<()> {
    const PLAN: &str = "migrate,save,checkpoint,migrate";
    let vif = |last: u32| format!("bridge=xenbr0,mtu=9000,mac=00:16:3e:00:00:0{last}");
    let more = format!("vif=['{}','{}']\n", vif(2), vif(3));
    let (guest, console) = lab.start(&spec(lab, &format!("net-lives={PLAN}"), more)?)?;
    let text = through_lives(lab, &guest, console, PLAN, |_, _| Ok(()))?;
    judge_checks("drivers", 30, "the kernel with cards", &text)
}

pub(super) fn cards(lab: &mut Lab) -> Result<()> {
    let vif = |last: u32| format!("bridge=xenbr0,mtu=9000,mac=00:16:3e:00:00:0{last}");
    let more = format!("vif=['{}','{}']\n", vif(2), vif(3));
    let spec = spec(lab, "net mac=00:16:3e:00:00:02 mtu=9000", more)?;
    // Port 7 sends back what it gets.
    lab.dom0
        .run("setsid nc -ll -p 7 -e cat </dev/null >/dev/null 2>&1 & echo $! >/run/echo.pid", PATIENCE)?;
    let (guest, mut console) = lab.start(&spec)?;
    let (name, id) = (guest.name(), guest.list()?.context("it is gone")?.id);
    for (word, down) in [("please cut the link of vif 1", 1), ("please restore the link of vif 1", 0)] {
        console.wait_for(word, PATIENCE)?;
        let node = format!("/local/domain/{id}/device/vif/1/disconnect");
        lab.dom0.run(&format!("xenstore-write {node} {down}"), PATIENCE)?;
    }
    console.wait_for("please restart the backend of vif 1", PATIENCE)?;
    restart(lab, "vif", &format!("vif-{id}-1"))?;
    // The interface is another one. Putting it into the bridge, and saying so, is the hotplug script's work, which the toolstack
    // starts for a new device alone: the backend calls itself connected after that only.
    let bridge = format!(
        "until ip link set vif{id}.1 mtu 9000 2>/dev/null; do sleep 0.1; done && \
         ip link set vif{id}.1 master xenbr0 up && \
         xenstore-write /local/domain/0/backend/vif/{id}/1/hotplug-status connected"
    );
    let script = format!("{bridge} && xenstore-write /local/domain/{id}/data/restarted 1");
    lab.dom0.run(&script, PATIENCE)?;
    let said = |word| format!("xenstore-write /local/domain/{id}/data/{word} 1");
    let device = format!("vif-{id}-1");
    console.wait_for("please take the backend of vif 1 away", PATIENCE)?;
    lab.dom0.run(&format!("echo {device} >{DRIVERS}/vif/unbind && {}", said("away")), PATIENCE)?;
    console.wait_for("please bring the backend of vif 1 back", PATIENCE)?;
    lab.dom0.run(&format!("echo {device} >{DRIVERS}/vif/bind && {bridge} && {}", said("back")), PATIENCE)?;
    console.wait_for("please unplug vif 1", PATIENCE)?;
    let vif = vif(3).replace(',', " ");
    lab.dom0
        .run(&format!("xl network-detach {name} 1 && xl network-attach {name} {vif} untrusted"), PATIENCE)?;
    let text = console.wait_for(CHECKED, PATIENCE)?;
    judge_checks("drivers", 51, "the kernel with cards", &text)?;
    guest.wait("end", |listed| listed.is_none())?;
    lab.dom0.run("kill $(cat /run/echo.pid)", PATIENCE).map(drop)
}
