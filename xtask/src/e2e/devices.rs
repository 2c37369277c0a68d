//! Devices that are missing, or not as usual.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::drivers::DRIVERS;
use super::lab::Lab;
use crate::fat;
use crate::guest::{PATIENCE, Spec};
use crate::image::out_dir;
use crate::web::Site;

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
    let (guest, mut console) = lab.start(&Spec { disk: None, ..lab.spec() })?;
    let text = console.wait_for("ready; type help", PATIENCE)?;
    ensure!(text.contains("disk: this domain has no disk (vbd)"), "it does not say so:\n{text}");
    let site = lab.site()?;
    let answer = site.get("/hello.txt")?.expect(503)?.text()?;
    ensure!(answer.contains("has no disk"), "{answer}");
    site.get("/-/status")?.expect(200)?;
    // Whatever happens to the disks' directory makes it ask. Who comes meanwhile must not be slept over: nothing else would wake
    // it before the next change.
    let script = format!(
        "node=/local/domain/$(xl domid {})/device/vbd; exec 3<>/dev/tcp/10.0.0.2/80 || exit 1\n\
         (for n in 1 2 3 4 5 6 7 8; do xenstore-write $node ''; sleep 3.5; done; : >/asked) &\n\
         until [ -e /asked ]; do\n\
           printf 'HEAD /-/bytes/1 HTTP/1.1\\r\\nHost: guest\\r\\n\\r\\n' >&3\n\
           while read -r -t 2.5 -u 3 line; [ \"$line\" != $'\\r' ]; do\n\
             [ -n \"$line\" ] || {{ echo 'a request was not answered in time'; exit 1; }}\n\
           done\n\
         done",
        guest.name()
    );
    lab.dom0.run(&script, PATIENCE)?;
    Ok(())
}

/// What a request may take of a disk that is known to be gone: nothing is waited for.
const AT_ONCE: Duration = Duration::from_secs(5);

/// The files are gone, nobody waits for them, and the rest of the site is there.
fn has_no_files(site: &Site) -> Result<()> {
    for path in ["/hello.txt", "/large.bin", "/"] {
        let start = Instant::now();
        site.get(path)?.expect(503)?;
        ensure!(start.elapsed() < AT_ONCE, "503 after {:?}", start.elapsed());
    }
    site.put("/new.txt", b"x")?.expect(503)?;
    site.get("/-/status")?.expect(200).map(drop)
}

/// Runs `f` while somebody loads a large file again and again, whatever becomes of it.
fn under_load<R>(site: &Site, f: impl FnOnce() -> Result<R>) -> Result<R> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _ = site.get("/large.bin");
            }
        });
        let result = f();
        over.store(true, Ordering::Relaxed);
        result
    })
}

/// Waits until a file is served, which is to be this one.
pub(super) fn comes_back(site: &Site, path: &str, body: &[u8]) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match site.get(path) {
            Ok(answer) if answer.status == 200 => {
                ensure!(answer.body == body, "another {path} came back");
                return Ok(());
            }
            other if Instant::now() >= end => {
                other?.expect(200)?;
            }
            _ => thread::sleep(Duration::from_millis(100)),
        }
    }
}

pub(super) fn a_disk_is_unplugged_and_another_plugged_in(lab: &mut Lab) -> Result<()> {
    const OTHER: &[u8] = b"Hello from another disk.\n";
    let path = out_dir()?.join("another.img");
    fat::image(&path, 16, &[("hello.txt", OTHER)])?;
    let image = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    lab.dom0.put("/another", &image)?;
    let other = loop_device(lab, "", "mv /another $f")?;
    let (guest, console) = lab.start(&lab.spec())?;
    let (name, site) = (guest.name(), lab.site()?);
    let large = site.get("/large.bin")?.expect(200)?.body;
    for _ in 0..2 {
        let detach = |disk| lab.dom0.run(&format!("xl block-detach {name} {disk}"), PATIENCE);
        under_load(&site, || detach("xvda"))?;
        has_no_files(&lab.site()?)?;
        // Another number, another size, another content.
        lab.dom0.run(&format!("xl block-attach {name} phy:{other},xvdb,w"), PATIENCE)?;
        comes_back(&site, "/hello.txt", OTHER)?;
        site.get("/large.bin")?.expect(404)?;
        detach("xvdb")?;
        has_no_files(&site)?;
        lab.dom0.run(&format!("xl block-attach {name} phy:/dev/vda,xvda,w"), PATIENCE)?;
        comes_back(&site, "/large.bin", &large)?;
    }
    drop((guest, console));
    drop_loop_device(lab, &other)
}

pub(super) fn a_disk_comes_back_with_its_backend(lab: &mut Lab) -> Result<()> {
    let (guest, mut console) = lab.start(&lab.spec())?;
    let (id, site) = (guest.list()?.context("it is gone")?.id, lab.site()?);
    let large = site.get("/large.bin")?.expect(200)?.body;
    let device = format!("vbd-{id}-51712");
    // Nobody tells the guest of this one: the disk does not answer any more.
    lab.dom0.run(&format!("echo {device} >{DRIVERS}/vbd/unbind"), PATIENCE)?;
    let silent = site.get("/large.bin");
    ensure!(!silent.is_ok_and(|answer| answer.status == 200), "the file came without the disk");
    console.wait_for("disk: gone", PATIENCE)?;
    has_no_files(&lab.site()?)?;
    lab.dom0.run(&format!("echo {device} >{DRIVERS}/vbd/bind"), PATIENCE)?;
    comes_back(&site, "/large.bin", &large)?;
    // Started again at once, it may take up the rings where they are, and then there is nothing to see.
    let again = format!("cd {DRIVERS}/vbd && echo {device} >unbind && echo {device} >bind");
    under_load(&site, || lab.dom0.run(&again, PATIENCE))?;
    comes_back(&site, "/large.bin", &large)
}

/// A disk of dom0's memory behind a loop device, made by `fill` (a command that gets the file's name); returns the loop
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
    let site = lab.site()?;
    site.get("/hello.txt")?.expect(503)?;
    // It can be taken away all the same, for one that is.
    let name = guest.name();
    let change = format!("xl block-detach {name} xvda && xl block-attach {name} phy:/dev/vda,xvda,w");
    lab.dom0.run(&change, PATIENCE)?;
    comes_back(&site, "/hello.txt", b"Hello from the disk.\n")?;
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
