//! Living and dying in good order.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::lab::Lab;
use crate::guest::{Guest, Listed, PATIENCE};

pub(super) fn an_idle_guest_is_blocked_and_uses_no_cpu(lab: &mut Lab) -> Result<()> {
    let (guest, _console) = lab.start(&lab.spec())?;
    lab.site()?;
    // The connections of the first requests end meanwhile.
    thread::sleep(Duration::from_secs(2));
    let listed = || -> Result<Listed> { guest.list()?.context("the guest is gone") };
    let before = listed()?;
    thread::sleep(Duration::from_secs(10));
    let after = listed()?;
    ensure!(after.state.contains('b'), "it is not blocked: {after:?}");
    let used = after.seconds - before.seconds;
    ensure!(used <= 0.2, "it used {used:.1} s of CPU in 10 s");
    Ok(())
}

/// Types a line on the guest's console, as `xl console` does.
pub(super) fn type_line(lab: &Lab, guest: &Guest<'_>, line: &str) -> Result<()> {
    let id = guest.list()?.context("the guest is gone")?.id;
    let script =
        format!("tty=$(xenstore-read /local/domain/{id}/console/tty) && printf '%s\\r' '{line}' >$tty");
    lab.dom0.run(&script, PATIENCE).map(drop)
}

pub(super) fn a_line_on_the_console_is_a_command(lab: &mut Lab) -> Result<()> {
    let (guest, mut console) = lab.start(&lab.spec())?;
    console.wait_for("ready; type help", PATIENCE)?;
    type_line(lab, &guest, "help")?;
    console.wait_for("stop in good order", PATIENCE)?;
    type_line(lab, &guest, "net")?;
    console.wait_for("net_rx_frames_total", PATIENCE)?;
    type_line(lab, &guest, "disk")?;
    console.wait_for("disk_requests_total", PATIENCE)?;
    type_line(lab, &guest, "stats")?;
    console.wait_for("xen_hypercalls_total", PATIENCE)?;
    type_line(lab, &guest, "dance")?;
    console.wait_for("unknown command", PATIENCE)?;
    Ok(())
}

pub(super) fn the_console_can_end_it(lab: &mut Lab) -> Result<()> {
    let (guest, mut console) = lab.start(&lab.spec())?;
    console.wait_for("ready; type help", PATIENCE)?;
    type_line(lab, &guest, "poweroff")?;
    console.wait_for("stopping: PowerOff", PATIENCE)?;
    guest.wait("end", |listed| listed.is_none())?;
    Ok(())
}

pub(super) fn xl_shutdown_is_obeyed(lab: &mut Lab) -> Result<()> {
    let (guest, mut console) = lab.start(&lab.spec())?;
    console.wait_for("ready; type help", PATIENCE)?;
    lab.site()?.put("/last.txt", b"written before the end")?.expect(201)?;
    lab.dom0.run(&format!("xl shutdown {}", guest.name()), PATIENCE)?;
    let text = console.wait_for("stopping: PowerOff", PATIENCE)?;
    ensure!(!text.contains("ERROR") && !text.contains("WARN"), "not in good order:\n{text}");
    guest.wait("end", |listed| listed.is_none())?;
    let (_guest, _console) =
        lab.start(&crate::guest::Spec { name: format!("{}-2", guest.name()), ..lab.spec() })?;
    let site = lab.site()?;
    ensure!(site.get("/last.txt")?.expect(200)?.body == b"written before the end", "another file");
    site.delete("/last.txt")?.expect(204)?;
    Ok(())
}

pub(super) fn xl_reboot_is_obeyed(lab: &mut Lab) -> Result<()> {
    let (guest, mut console) = lab.start(&lab.spec())?;
    console.wait_for("ready; type help", PATIENCE)?;
    let first = guest.list()?.context("the guest is gone")?.id;
    lab.dom0.run(&format!("xl reboot {}", guest.name()), PATIENCE)?;
    console.wait_for("stopping: Reboot", PATIENCE)?;
    guest.wait("come back as another domain", |listed| listed.is_some_and(|listed| listed.id != first))?;
    lab.site()?.get("/hello.txt")?.expect(200)?;
    Ok(())
}
