//! The web server, over the real network card and disk.

use anyhow::{Context, Result, ensure};

use super::Test;
use super::lab::Lab;
use crate::guest::{PATIENCE, Spec};
use crate::web::{CHECKS, Site};

/// The checks that hold wherever the server runs, here on real Xen.
pub(super) fn checks() -> impl Iterator<Item = Test> {
    CHECKS.iter().map(|(name, check)| -> Test { (name, Box::new(|lab| check(lab.shared_site()?))) })
}

pub(super) fn a_file_survives_the_guest(lab: &mut Lab) -> Result<()> {
    let body: Vec<u8> = (0..1_000_000_u32).map(|n| (n.wrapping_mul(n) % 251) as u8).collect();
    let (guest, _console) = lab.start(&lab.spec())?;
    lab.site()?.put("/kept.bin", &body)?.expect(201)?;
    // Not told to stop: what was acknowledged is on the disk.
    guest.destroy()?;
    let (_guest, _console) = lab.start(&Spec { name: "put-survives-2".into(), ..lab.spec() })?;
    let site: Site = lab.site()?;
    ensure!(site.get("/kept.bin")?.expect(200)?.body == body, "another file came back");
    site.delete("/kept.bin")?.expect(204)?;
    Ok(())
}

pub(super) fn two_hundred_pings_without_loss(lab: &mut Lab) -> Result<()> {
    let (_guest, mut console) = lab.start(&lab.spec())?;
    console.wait_for("ready; type help", PATIENCE)?;
    let text = lab.dom0.run("busybox ping -q -c 200 -i 0.02 10.0.0.2", PATIENCE)?;
    let loss = text.lines().find(|line| line.contains("packet loss"));
    let loss = loss.with_context(|| format!("no summary:\n{text}"))?;
    ensure!(loss.starts_with("200 packets transmitted, 200 packets received, 0%"), "{loss}");
    Ok(())
}
