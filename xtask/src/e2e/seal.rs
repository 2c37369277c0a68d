//! Faults end the domain as crashed, and say what happened.

use anyhow::{Context, Result, ensure};

use super::lab::Lab;
use crate::guest::{Listed, PATIENCE, Spec};
use crate::platform::Arch;
use crate::xen_log;

pub(super) fn a_panic_ends_as_a_crash_that_says_why(lab: &mut Lab) -> Result<()> {
    crashes(lab, "panic", &["panicked at xen-rt/src/arch/", "asked for by the command line"])
}

pub(super) fn page_zero_is_not_there(lab: &mut Lab) -> Result<()> {
    crashes(lab, "null", &["page fault: reading 0x8, in page zero"])
}

pub(super) fn the_page_under_the_stack_is_not_there(lab: &mut Lab) -> Result<()> {
    crashes(lab, "stack", &["page fault: writing 0x", "in the guard page under the stack"])
}

pub(super) fn text_cannot_be_written(lab: &mut Lab) -> Result<()> {
    crashes(lab, "text", &["page fault: writing 0x", "in the text, which is read-only"])
}

pub(super) fn constants_cannot_be_written(lab: &mut Lab) -> Result<()> {
    crashes(lab, "rodata", &["page fault: writing 0x", "in the constants, which are read-only"])
}

pub(super) fn memory_cannot_be_executed(lab: &mut Lab) -> Result<()> {
    crashes(lab, "exec", &["page fault: executing 0x", "which may not be executed"])
}

fn crashes(lab: &Lab, selftest: &str, words: &[&str]) -> Result<()> {
    let cmdline = format!("ip=10.0.0.2/24 selftest={selftest}");
    let (guest, mut console) = lab.start(&Spec { cmdline, watched: true, ..lab.spec() })?;
    let listed = guest.wait("end", |listed| listed.is_some_and(Listed::ended))?.context("it is gone")?;
    ensure!(listed.crashed(), "it did not end as a crash: {listed:?}");
    let last = console.wait_for(words.last().unwrap_or(&""), PATIENCE).context("on the console")?;
    for word in words {
        ensure!(last.contains(word), "no {word:?} on the console:\n{last}");
    }
    let log = lab.dom0.run("xl dmesg", PATIENCE)?;
    let log = said_in_log(lab.arch, log.lines().filter(|line| xen_log::is_of(line, listed.id)));
    for word in words {
        ensure!(log.contains(word), "no {word:?} in Xen's log:\n{log}");
    }
    Ok(())
}

/// What a kernel said in these lines of Xen's log.
pub(super) fn said_in_log<'l>(arch: Arch, lines: impl Iterator<Item = &'l str>) -> String {
    match arch {
        Arch::X86_64 => lines.collect::<Vec<_>>().join("\n"),
        Arch::Arm64 => xen_log::said(lines),
    }
}
