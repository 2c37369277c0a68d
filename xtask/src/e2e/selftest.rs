//! The self-test's kernel: as the first domain, and as two domains that check each other.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::lab::{Lab, read};
use crate::deb;
use crate::guest::{PATIENCE, Spec};
use crate::image;
use crate::qemu::{Machine, Qemu, System};

/// How the last line ends, as a terminal gets it.
const END: &str = " failed\r";

fn image() -> Result<Vec<u8>> {
    let options = image::Options { package: Some("selftest"), quiet: true, ..image::Options::default() };
    read(&image::build(&options)?)
}

/// Whether every check passed, as the last line says and the others bear out.
fn judge(who: &str, text: &str) -> Result<()> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let starting =
        |word: &str| lines.iter().copied().filter(|line| line.starts_with(word)).collect::<Vec<_>>();
    let failed = starting("FAILED ");
    ensure!(failed.is_empty(), "{who}:\n{}", failed.join("\n"));
    let passed = starting("ok ").len() + starting("refused ").len();
    let total = starting("selftest: ").pop().with_context(|| format!("{who}: no last line:\n{text}"))?;
    // Of a few checks, something is missing.
    if passed < 50 || total != format!("selftest: {passed} passed, 0 failed") {
        bail!("{who} says {total:?} after {passed} lines:\n{text}");
    }
    Ok(())
}

pub(super) fn as_the_first_domain() -> Result<()> {
    let dir = deb::dir();
    let lock = deb::lock(&dir)?;
    let bed = deb::ensure(&lock, &dir)?;
    let name = "selftest.dom0";
    std::fs::write(bed.dir.join(name), image()?).context("cannot put the image beside Xen")?;
    let system = System::Pvh { kernel: name.into(), cmdline: String::new(), vcpus: 2 };
    let machine =
        Machine { memory: 512, dom0_memory: 64, system, disk: None, forwards: Vec::new(), echo: false };
    let qemu = Qemu::start(&bed, &machine)?;
    qemu.wait_for(&[END, "Dom0 halted", "Dom0 crashed"], Duration::from_secs(120))?;
    judge("the first domain", &qemu.serial())
}

pub(super) fn as_a_pair(lab: &mut Lab) -> Result<()> {
    lab.dom0.put("/selftest", &image()?)?;
    let (plain, modern) = ("abi=2-level grants=1", "abi=fifo grants=2");
    for (pair, front, back) in [(1, plain, modern), (2, modern, plain)] {
        let spec = |role: &str, words: &str| Spec {
            // A console's log goes on when a name is used again.
            name: format!("{}-{pair}-{role}", lab.spec().name),
            kernel: "/selftest".into(),
            vcpus: 2,
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
        judge("the front", &front_console.wait_for(END, PATIENCE)?)?;
        judge("the back", &back_console.wait_for(END, PATIENCE)?)?;
        front.wait("end", |listed| listed.is_none())?;
        back.wait("end", |listed| listed.is_none())?;
    }
    Ok(())
}
