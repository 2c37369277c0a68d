//! The smallest guests, of which newcomers make theirs.

use anyhow::{Result, ensure};

use super::alone;
use super::lab::{Lab, build};
use super::seal::said_in_log;
use crate::dom0::Follow;
use crate::guest::{Guest, PATIENCE, Spec};
use crate::hello;
use crate::image::Options;
use crate::platform::Arch;

/// Not as a process, which is its default feature.
fn options() -> Options {
    Options { package: Some("hello"), features: Some(Vec::new()), ..Options::default() }
}

pub(super) fn it_answers_and_ends(lab: &mut Lab) -> Result<()> {
    lab.put("/hello", options())?;
    let spec = Spec { kernel: "/hello".into(), cmdline: String::new(), disk: None, ..lab.spec() };
    let (guest, mut console) = lab.start(&spec)?;
    console.wait_for("listening at 10.0.0.2, port 80", PATIENCE)?;
    hello::is_answered(lab.dom0.http_port())?;
    let text = console.wait_for("answered; that is all", PATIENCE)?;
    for line in ["hello from 32 MiB of memory", &format!("I am {}", guest.name())] {
        ensure!(text.contains(line), "no {line:?} on the console:\n{text}");
    }
    guest.wait("end", |listed| listed.is_none()).map(drop)
}

/// Nobody made it a store, and it says so and goes on.
pub(super) fn it_does_without_a_store(arch: Arch) -> Result<()> {
    let qemu = alone::start_dom0less(arch, "hello", &build(arch, options())?, "")?;
    qemu.wait_for(&["alone; that is all", "Panic on CPU"], PATIENCE)?;
    let text = qemu.serial();
    for line in ["hello from 32 MiB of memory", "no store: ", "alone; that is all"] {
        ensure!(text.contains(line), "no {line:?} in\n{text}");
    }
    Ok(())
}

pub(super) fn a_line_and_the_end(lab: &mut Lab) -> Result<()> {
    let (guest, mut console) = line(lab, "line-console", 8)?;
    console.wait_for("a line from 8 MiB of memory", PATIENCE)?;
    guest.wait("end", |listed| listed.is_none()).map(drop)
}

pub(super) fn a_line_in_xens_log_and_the_end(lab: &mut Lab) -> Result<()> {
    let (guest, _console) = line(lab, "line", 9)?;
    guest.wait("end", |listed| listed.is_none())?;
    let log = lab.dom0.run("xl dmesg", PATIENCE)?;
    let said = said_in_log(lab.arch, log.lines());
    ensure!(said.contains("a line from 9 MiB of memory"), "no such line in Xen's log:\n{log}");
    Ok(())
}

/// Starts a kernel that prints a line, with so much memory.
fn line<'l>(lab: &'l Lab, package: &'static str, memory: u32) -> Result<(Guest<'l>, Follow)> {
    let kernel = format!("/{package}");
    lab.put(&kernel, Options { package: Some(package), ..Options::default() })?;
    lab.start(&Spec { kernel, vif: None, disk: None, memory, ..lab.spec() })
}
