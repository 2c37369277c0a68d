//! The self-test's kernel: as the first domain, and as two domains that check each other.

use anyhow::{Context, Result, ensure};

use super::alone;
use super::lab::{CHECKED, Lab, build, judge_checks};
use super::suspend::{checkpoint, save_and_restore};
use crate::guest::{Listed, PATIENCE, Spec};
use crate::image::Options;
use crate::platform::Arch;

fn options() -> Options {
    Options { package: Some("selftest"), ..Options::default() }
}

/// How many vCPUs are more than have a place in `shared_info`.
fn many(arch: Arch) -> u32 {
    match arch {
        Arch::X86_64 => 34,
        Arch::Arm64 => 2,
    }
}

/// The newest of what Xen has. For Arm it has one version of the grant table.
fn modern(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "abi=fifo grants=2",
        Arch::Arm64 => "abi=fifo grants=1",
    }
}

/// Whether every check passed.
fn judge(who: &str, text: &str) -> Result<()> {
    judge_checks("selftest", 50, who, text)
}

pub(super) fn as_the_first_domain(arch: Arch) -> Result<()> {
    let qemu = alone::start(arch, "selftest", &build(arch, options())?, many(arch), "")?;
    qemu.wait_for(&[CHECKED, "Dom0 halted", "Dom0 crashed"], PATIENCE)?;
    judge("the first domain", &qemu.serial())
}

pub(super) fn as_a_pair(lab: &mut Lab) -> Result<()> {
    lab.put("/selftest", options())?;
    let (plain, modern) = ("abi=2-level grants=1", modern(lab.arch));
    for (pair, front, back) in [(1, plain, modern), (2, modern, plain)] {
        let spec = |role: &str, words: &str| Spec {
            // A console's log goes on when a name is used again.
            name: format!("{}-{pair}-{role}", lab.spec().name),
            kernel: "/selftest".into(),
            // More than have a place in `shared_info`, where such a one's events need no control block.
            vcpus: if words == plain { many(lab.arch) } else { 2 },
            cmdline: format!("role={role} {words}"),
            vif: None,
            disk: None,
            ..Spec::default()
        };
        let (front, mut front_console) = lab.start(&spec("front", front))?;
        let (back, mut back_console) = lab.start(&spec("back", back))?;
        let [front_id, back_id] = [&front, &back].map(|guest| -> Result<u32> {
            Ok(guest.list()?.with_context(|| format!("{} is gone", guest.name()))?.id)
        });
        let (front_id, back_id) = (front_id?, back_id?);
        lab.dom0.run(
            &format!(
                "xenstore-write /local/domain/{front_id}/data/peer {back_id} /local/domain/{back_id}/data/peer {front_id}"
            ),
            PATIENCE,
        )?;
        judge("the front", &front_console.wait_for(CHECKED, 3 * PATIENCE)?)?;
        judge("the back", &back_console.wait_for(CHECKED, 3 * PATIENCE)?)?;
        front.wait("end", |listed| listed.is_none())?;
        back.wait("end", |listed| listed.is_none())?;
    }
    Ok(())
}

/// With both event ABIs.
pub(super) fn on_several_vcpus(lab: &mut Lab) -> Result<()> {
    lab.put("/selftest", options())?;
    for abi in ["2-level", "fifo"] {
        let spec = Spec {
            name: format!("{}-{abi}", lab.spec().name),
            kernel: "/selftest".into(),
            vcpus: 4,
            cmdline: format!("vcpus=4 abi={abi}"),
            vif: None,
            disk: None,
            ..Spec::default()
        };
        let (guest, mut console) = lab.start(&spec)?;
        let text = console.wait_for(CHECKED, 3 * PATIENCE)?;
        judge_checks("selftest", 8, abi, &text)?;
        // Each line of each vCPU is whole, and is there once.
        let lines: Vec<&str> =
            text.lines().map(str::trim_end).filter(|line| line.contains("smp-line")).collect();
        for (vcpu, line) in (1..4).flat_map(|vcpu| (0..40).map(move |line| (vcpu, line))) {
            let wanted = format!("smp-line vcpu {vcpu} line {line} of 40 end");
            let count = lines.iter().filter(|line| **line == wanted).count();
            ensure!(count == 1, "{wanted:?} is there {count} times:\n{text}");
        }
        ensure!(lines.len() == 120, "{} lines in place of 120:\n{text}", lines.len());
        guest.wait("end", |listed| listed.is_none())?;
    }
    Ok(())
}

/// With both event ABIs and both versions of the grant table, on one vCPU and on two.
pub(super) fn in_several_lives(lab: &mut Lab) -> Result<()> {
    lab.put("/selftest", options())?;
    for (words, vcpus, plan) in [
        ("abi=2-level grants=1", 2, "checkpoint,save,save"),
        ("abi=fifo grants=2", 2, "checkpoint,save,save"),
        ("abi=2-level grants=2", 1, "save"),
        ("abi=fifo grants=1", 1, "save"),
    ] {
        let spec = Spec {
            name: format!("{}-{}", lab.spec().name, words.replace([' ', '='], "-")),
            kernel: "/selftest".into(),
            vcpus,
            cmdline: format!("resume={plan} {words}"),
            vif: None,
            disk: None,
            ..Spec::default()
        };
        let (guest, mut console) = lab.start(&spec)?;
        let name = guest.name();
        let mut lives = 1;
        for (number, how) in (1..).zip(plan.split(',')) {
            console.wait_for(&format!("please {how} {number}"), 3 * PATIENCE)?;
            let command = if how == "save" { save_and_restore(name) } else { checkpoint(name) };
            lab.dom0.run(&command, PATIENCE)?;
            console.wait_for(&format!("please tell the time {number}"), PATIENCE)?;
            let node = format!("/local/domain/$(xl domid {name})/data/time");
            lab.dom0.run(&format!("xenstore-write {node} $(date +%s)"), PATIENCE)?;
            lives += 1;
        }
        let text = console.wait_for(CHECKED, 3 * PATIENCE)?;
        judge_checks("selftest", 30 * lives, words, &text)?;
        guest.wait("end", |listed| listed.is_none())?;
    }
    Ok(())
}

pub(super) fn the_page_under_a_stack_is_not_there(lab: &mut Lab) -> Result<()> {
    lab.put("/selftest", options())?;
    let spec = Spec {
        kernel: "/selftest".into(),
        vcpus: 2,
        cmdline: "vcpus=2 overflow".into(),
        vif: None,
        disk: None,
        watched: true,
        ..lab.spec()
    };
    let (guest, mut console) = lab.start(&spec)?;
    let listed = guest.wait("end", |listed| listed.is_some_and(Listed::ended))?.context("it is gone")?;
    ensure!(listed.crashed(), "it did not end as a crash: {listed:?}");
    console.wait_for("in the guard page under the stack", PATIENCE).map(drop)
}
