//! The drivers' kernel: what blkfront and netfront can do, on Linux' backends.

use anyhow::{Context, Result, ensure};

use super::devices::{drop_loop_device, loop_device};
use super::lab::{CHECKED, Lab, judge_checks};
use crate::guest::{PATIENCE, Spec};
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
    lab.dom0.run(&format!("echo 0 >{NULL_BLK}/{bad}/power && rmdir {NULL_BLK}/{bad}"), PATIENCE)?;
    [main, fixed, large].iter().try_for_each(|device| drop_loop_device(lab, device))
}

/// Where Linux makes disks out of nothing.
const NULL_BLK: &str = "/sys/kernel/config/nullb";

/// A disk of dom0's memory that fails what touches the bad sectors; returns its name.
fn bad_disk(lab: &Lab) -> Result<&'static str> {
    // The module made the first of them when it was loaded.
    let name = "nullb1";
    let script = format!(
        "mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config && \
         mkdir {NULL_BLK}/{name} && cd {NULL_BLK}/{name} && echo 1 >memory_backed && echo 16 >size && \
         echo 512 >blocksize && echo +{}-{} >badblocks && echo 1 >power && test -b /dev/{name}",
        BAD.start,
        BAD.end - 1
    );
    lab.dom0.run(&script, PATIENCE)?;
    Ok(name)
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
