//! The domain is saved, restored, migrated.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::devices::comes_back;
use super::lab::Lab;
use crate::guest::{Guest, PATIENCE, Spec};
use crate::image;
use crate::web::Site;

/// Saves the domain, and restores it as another one.
pub(super) fn save_and_restore(name: &str) -> String {
    format!("xl save {name} /tmp/{name} && xl restore /tmp/{name} && rm /tmp/{name}")
}

/// Saves the domain, which goes on where it was.
pub(super) fn checkpoint(name: &str) -> String {
    format!("xl save -c {name} /tmp/{name} && rm /tmp/{name}")
}

/// What migrates the domain to the same machine. Its console's log is that of the name with `--incoming` then.
pub(super) fn migrate(lab: &Lab, name: &str) -> Result<String> {
    // What xl takes for ssh: the name of the other machine, and a command for it.
    const SSH: &str = "printf '#!/bin/bash\\nshift; exec \"$@\"\\n' >/usr/bin/here; chmod +x /usr/bin/here";
    lab.dom0.run(SSH, PATIENCE)?;
    Ok(format!("xl migrate -s here {name} localhost"))
}

fn id(guest: &Guest<'_>) -> Result<u32> {
    Ok(guest.list()?.context("the guest is gone")?.id)
}

pub(super) fn it_goes_on_where_it_was(lab: &mut Lab) -> Result<()> {
    let spec = lab.spec();
    let (guest, mut console) = lab.start(&spec)?;
    let (name, first, site) = (guest.name(), id(&guest)?, lab.site()?);
    let large = site.get("/large.bin")?.expect(200)?.body;

    // A checkpoint: the domain goes on by itself.
    lab.dom0.run(&checkpoint(name), PATIENCE)?;
    console.wait_for("suspended, and here again", PATIENCE)?;
    ensure!(id(&guest)? == first, "a checkpoint has made another domain of it");
    comes_back(&site, "/large.bin", &large)?;

    for resumes in 1..=2 {
        let (before, ahead) = (site.metric("uptime_seconds")?, clock_ahead(&site)?);
        lab.dom0.run(&save_and_restore(name), PATIENCE)?;
        comes_back(&lab.site()?, "/large.bin", &large)?;
        console.wait_for("resumed as another domain", PATIENCE)?;
        ensure!(id(&guest)? != first, "it is the same domain");
        ensure!(site.metric("resumes_total")? == resumes, "the resume is not counted");
        ensure!(site.metric("uptime_seconds")? >= before, "its clock went back");
        let now_ahead = clock_ahead(&site)?;
        let same = now_ahead.0 <= ahead.1 && ahead.0 <= now_ahead.1;
        ensure!(same, "its time of day was ahead by seconds of {ahead:?}, and is by {now_ahead:?}");
    }
    ensure!(site.metric("checkpoints_total")? == 1, "the checkpoint is not counted");

    // Devices of its new life come and go like those of the first.
    lab.dom0.run(&format!("xl network-detach {name} 0"), PATIENCE)?;
    console.wait_for("net: closed by the backend", PATIENCE)?;
    let vif = spec.vif.as_deref().unwrap_or_default().replace(',', " ");
    lab.dom0.run(&format!("xl network-attach {name} {vif}"), PATIENCE)?;
    comes_back(&site, "/large.bin", &large)?;
    lab.dom0.run(&format!("xl block-detach {name} xvda"), PATIENCE)?;
    lab.dom0.run(&format!("xl block-attach {name} phy:/dev/vda,xvda,w"), PATIENCE)?;
    comes_back(&site, "/large.bin", &large)?;

    // And it goes without them, and without what it had, too.
    lab.dom0.run(&format!("xl block-detach {name} xvda"), PATIENCE)?;
    lab.dom0.run(&save_and_restore(name), PATIENCE)?;
    lab.site()?.get("/hello.txt")?.expect(503)?;
    lab.dom0.run(&format!("xl block-attach {name} phy:/dev/vda,xvda,w"), PATIENCE)?;
    comes_back(&site, "/large.bin", &large)?;

    lab.dom0.run(&format!("xl shutdown {name}"), PATIENCE)?;
    guest.wait("end", |listed| listed.is_none())?;
    Ok(())
}

/// How far the guest's time of day is ahead of that of this machine, in seconds: no less and no more than these.
fn clock_ahead(site: &Site) -> Result<(i64, i64)> {
    let now = || -> Result<i64> { Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() as i64) };
    let (before, guest, after) = (now()?, site.metric("unix_time_seconds")? as i64, now()?);
    // Both are rounded down.
    Ok((guest - after - 1, guest - before + 1))
}

/// Runs a command of dom0's so many times, while sixteen connections read files, and one writes one.
fn under_traffic(lab: &Lab, times: u32, command: &str) -> Result<()> {
    const LONG: Duration = Duration::from_secs(1800);
    lab.dom0.put("/load", &fs::read(image::load()?)?)?;
    let script = format!(
        "chmod +x /load && /load traffic 10.0.0.2 /large.bin 16 /traffic.bin {times} '{command}' 2>&1"
    );
    let said = lab.dom0.run(&script, LONG)?;
    print!("{said}");
    Ok(())
}

pub(super) fn nothing_is_lost_when_it_is_saved_under_load(lab: &mut Lab) -> Result<()> {
    let (guest, _console) = lab.start(&lab.spec())?;
    let (name, site) = (guest.name(), lab.site()?);
    under_traffic(lab, 2, &save_and_restore(name))?;
    under_traffic(lab, 2, &checkpoint(name))?;
    let (resumes, checkpoints) = (site.metric("resumes_total")?, site.metric("checkpoints_total")?);
    ensure!((resumes, checkpoints) == (2, 2), "{resumes} resumes, {checkpoints} checkpoints");
    Ok(())
}

pub(super) fn three_migrations_lose_nothing(lab: &mut Lab) -> Result<()> {
    migrations(lab, 3)
}

pub(super) fn twenty_migrations_lose_nothing(lab: &mut Lab) -> Result<()> {
    migrations(lab, 20)
}

fn migrations(lab: &Lab, times: u32) -> Result<()> {
    let (guest, _console) = lab.start(&Spec { memory: 16, ..lab.spec() })?;
    let (name, site) = (guest.name(), lab.site()?);
    under_traffic(lab, times, &migrate(lab, name)?)?;
    let resumes = site.metric("resumes_total")?;
    ensure!(resumes == u64::from(times), "{resumes} resumes");
    Ok(())
}
