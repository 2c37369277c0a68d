//! Devices that are missing, or not as usual.

use anyhow::{Result, ensure};

use super::lab::Lab;
use crate::guest::{PATIENCE, Spec};

pub(super) fn without_a_card_it_carries_on(lab: &mut Lab) -> Result<()> {
    let (guest, mut console) = lab.start(&Spec { vif: None, ..lab.spec() })?;
    let text = console.wait_for("ready; type help", PATIENCE)?;
    ensure!(text.contains("net: this domain has no network card (vif)"), "it does not say so:\n{text}");
    ensure!(text.contains("disk: vbd/51712 connected"), "it has no disk:\n{text}");
    lab.dom0.run(&format!("xl shutdown {}", guest.name()), PATIENCE)?;
    guest.wait("end", |listed| listed.is_none())?;
    Ok(())
}

pub(super) fn a_card_is_unplugged_and_plugged_in(lab: &mut Lab) -> Result<()> {
    let spec = lab.spec();
    let (guest, mut console) = lab.start(&spec)?;
    let site = lab.site()?;
    let large = site.get("/large.bin")?.expect(200)?.body;
    for _ in 0..2 {
        lab.dom0.run(&format!("xl network-detach {} 0", guest.name()), PATIENCE)?;
        console.wait_for("net: closed by the backend", PATIENCE)?;
        let vif = spec.vif.as_deref().unwrap_or_default().replace(',', " ");
        lab.dom0.run(&format!("xl network-attach {} {vif}", guest.name()), PATIENCE)?;
        console.wait_for("net: connected", PATIENCE)?;
        let again = lab.site()?.get("/large.bin")?.expect(200)?.body;
        ensure!(again == large, "another file came after the card was plugged in again");
    }
    Ok(())
}

pub(super) fn without_a_disk_it_carries_on(lab: &mut Lab) -> Result<()> {
    let (_guest, mut console) = lab.start(&Spec { disk: None, ..lab.spec() })?;
    let text = console.wait_for("ready; type help", PATIENCE)?;
    ensure!(text.contains("disk: this domain has no disk (vbd)"), "it does not say so:\n{text}");
    let site = lab.site()?;
    let answer = site.get("/hello.txt")?.expect(503)?.text()?;
    ensure!(answer.contains("has no disk"), "{answer}");
    site.get("/-/status")?.expect(200)?;
    Ok(())
}

/// A disk of dom0's memory behind a loop device, made by `fill` (a command that gets the file's name); answers the loop
/// device's name.
pub(super) fn loop_device(lab: &Lab, options: &str, fill: &str) -> Result<String> {
    let script = format!("f=$(mktemp) && {fill} && losetup -f --show {options} $f");
    Ok(lab.dom0.run(&script, PATIENCE)?.trim().to_owned())
}

pub(super) fn drop_loop_device(lab: &Lab, device: &str) -> Result<()> {
    lab.dom0
        .run(&format!("f=$(losetup -nO BACK-FILE {device}); losetup -d {device} && rm -f $f"), PATIENCE)
        .map(drop)
}

pub(super) fn a_disk_that_is_no_fat_is_reported(lab: &mut Lab) -> Result<()> {
    let device = loop_device(lab, "", "head -c 16777216 /dev/urandom >$f")?;
    let (guest, mut console) =
        lab.start(&Spec { disk: Some(format!("phy:{device},xvda,w")), ..lab.spec() })?;
    let text = console.wait_for("ready; type help", PATIENCE)?;
    ensure!(text.contains("carrying on without files"), "it does not say so:\n{text}");
    lab.site()?.get("/hello.txt")?.expect(503)?;
    drop(guest);
    drop_loop_device(lab, &device)
}

pub(super) fn a_read_only_disk_is_served_and_not_written(lab: &mut Lab) -> Result<()> {
    let (_guest, mut console) =
        lab.start(&Spec { disk: Some("phy:/dev/vda,xvda,r".into()), ..lab.spec() })?;
    console.wait_for("read-only", PATIENCE)?;
    let site = lab.site()?;
    ensure!(site.get("/hello.txt")?.expect(200)?.body.len() == 21, "another file");
    site.put("/no.txt", b"x")?.expect(403)?;
    site.put("/hello.txt", b"x")?.expect(403)?;
    site.delete("/hello.txt")?.expect(403)?;
    ensure!(site.get("/hello.txt")?.expect(200)?.body.len() == 21, "another file");
    Ok(())
}

pub(super) fn a_disk_of_large_sectors_is_read_and_written(lab: &mut Lab) -> Result<()> {
    let device = loop_device(lab, "--sector-size 4096", "cat /dev/vda >$f")?;
    let spec = Spec { disk: Some(format!("phy:{device},xvda,w")), ..lab.spec() };
    let (guest, mut console) = lab.start(&spec)?;
    console.wait_for("sectors of 4096 bytes", PATIENCE)?;
    let site = lab.site()?;
    ensure!(site.get("/large.bin")?.expect(200)?.body.len() == 8 << 20, "not the whole file");
    let body: Vec<u8> = (0..100_000_u32).map(|n| (n * 31 % 253) as u8).collect();
    site.put("/four.bin", &body)?.expect(201)?;
    guest.destroy()?;
    let (guest, _console) = lab.start(&Spec { name: format!("{}-2", spec.name), ..spec })?;
    let site = lab.site()?;
    ensure!(site.get("/four.bin")?.expect(200)?.body == body, "another file came back");
    drop(guest);
    drop_loop_device(lab, &device)
}
