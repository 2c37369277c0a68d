//! A guest whose work is tasks of one executor.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};

use super::devices::comes_back;
use super::lab::Lab;
use super::life::type_line;
use crate::dom0::Follow;
use crate::guest::{Guest, PATIENCE, Spec};
use crate::image::Options;
use crate::web::Site;

const PACKAGE: &str = "embassy-kernel";

/// What is read of the disk: sectors from this one on, so many, and their bytes.
const PART: (u64, u64) = (64, 4096);

/// Starts it, with a card that has an address in xenstore.
fn start(lab: &Lab) -> Result<(Guest<'_>, Follow, Site)> {
    let kernel = format!("/{PACKAGE}");
    // Not as a process, which is its default feature.
    lab.put(&kernel, Options { package: Some(PACKAGE), features: Some(Vec::new()), ..Options::default() })?;
    let vif = Some(format!("{},ip=10.0.0.2", card()));
    let (guest, mut console) = lab.start(&Spec { kernel, vif, cmdline: String::new(), ..lab.spec() })?;
    console.wait_for("listening at 10.0.0.2/24, port 80", PATIENCE)?;
    let site = Site::new(lab.dom0.http_port());
    Ok((guest, console, site))
}

fn card() -> String {
    Spec::default().vif.unwrap_or_default()
}

/// The part of the disk, by the guest and by dom0.
fn path() -> String {
    format!("/disk/{}/{}", PART.0, PART.1)
}

fn part(lab: &Lab) -> Result<Vec<u8>> {
    let script = format!("dd if=/dev/vda of=/part skip={} count={} 2>/dev/null", PART.0, PART.1);
    lab.dom0.run(&script, PATIENCE)?;
    lab.dom0.get("/part")
}

/// A figure of the page of figures.
fn figure(site: &Site, name: &str) -> Result<u64> {
    let page = site.get("/stats")?.expect(200)?.text()?;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|number| number.parse().ok()).with_context(|| format!("no {name} in\n{page}"))
}

pub(super) fn its_tasks_have_card_disk_console_and_store(lab: &mut Lab) -> Result<()> {
    let (guest, mut console, site) = start(lab)?;
    let name = guest.name();
    ensure!(site.get("/")?.expect(200)?.text()?.starts_with("Hello from tasks.\n"), "another page");
    ensure!(site.get(&path())?.expect(200)?.body == part(lab)?, "not what is on the disk");
    // A watch.
    lab.dom0.run(
        &format!("xenstore-write /local/domain/$(xl domid {name})/data/message 'from dom0'"),
        PATIENCE,
    )?;
    console.wait_for("message: from dom0", PATIENCE)?;
    ensure!(site.get("/")?.expect(200)?.text()?.contains("message: from dom0\n"), "an old message");
    // The console, and 32 requests at once.
    type_line(lab, &guest, "help")?;
    console.wait_for("what was counted", PATIENCE)?;
    let before = figure(&site, "disk_requests")?;
    type_line(lab, &guest, "disk")?;
    console.wait_for("131072 bytes by 32 requests at once", PATIENCE)?;
    let requests = figure(&site, "disk_requests")? - before;
    ensure!(requests == 32, "{requests} requests");
    ensure!(figure(&site, "ticks")? > 10, "no time passes");
    lab.dom0.run(&format!("xl shutdown {name}"), PATIENCE)?;
    let text = console.wait_for("the end", PATIENCE)?;
    ensure!(!text.contains("WARN") && !text.contains("ERROR"), "not in good order:\n{text}");
    guest.wait("end", |listed| listed.is_none()).map(drop)
}

pub(super) fn its_devices_come_and_go_under_traffic(lab: &mut Lab) -> Result<()> {
    let (guest, mut console, site) = start(lab)?;
    let (name, wanted, path) = (guest.name(), part(lab)?, path());
    let over = AtomicBool::new(false);
    let changes = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // Whatever becomes of it.
                let _ = site.get(&path);
            }
        });
        let mut changes = || -> Result<()> {
            for _ in 0..2 {
                lab.dom0.run(&format!("xl block-detach {name} xvda"), PATIENCE)?;
                site.get(&path)?.expect(503)?;
                lab.dom0.run(&format!("xl block-attach {name} phy:/dev/vda,xvda,w"), PATIENCE)?;
                comes_back(&site, &path, &wanted)?;
                lab.dom0.run(&format!("xl network-detach {name} 0"), PATIENCE)?;
                console.wait_for("card gone", PATIENCE)?;
                lab.dom0.run(&format!("xl network-attach {name} {}", card().replace(',', " ")), PATIENCE)?;
                console.wait_for("connected", PATIENCE)?;
                comes_back(&site, &path, &wanted)?;
            }
            Ok(())
        };
        let changes = changes();
        over.store(true, Ordering::Relaxed);
        changes
    });
    changes?;
    ensure!((figure(&site, "cards")?, figure(&site, "disks")?) == (3, 3), "other devices");
    type_line(lab, &guest, "poweroff")?;
    guest.wait("end", |listed| listed.is_none()).map(drop)
}

pub(super) fn without_an_address_it_asks_dhcp(lab: &mut Lab) -> Result<()> {
    let kernel = format!("/{PACKAGE}");
    lab.put(&kernel, Options { package: Some(PACKAGE), features: Some(Vec::new()), ..Options::default() })?;
    let (_guest, mut console) = lab.start(&Spec { kernel, cmdline: String::new(), ..lab.spec() })?;
    console.wait_for("asking DHCP", PATIENCE)?;
    // The bed's server gives addresses from 10.0.0.100 on.
    let text = console.wait_for("port 80", PATIENCE)?;
    let address = text.split("listening at ").nth(1).and_then(|rest| rest.split('/').next());
    let address = address.with_context(|| format!("no address:\n{text}"))?;
    let script = format!(
        "exec 3<>/dev/tcp/{address}/80; printf 'GET / HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n' >&3; cat <&3"
    );
    let page = lab.dom0.run(&script, PATIENCE)?;
    ensure!(page.contains("Hello from tasks."), "{page}");
    Ok(())
}
