//! It boots: with everything, with little, with another store, and as the first domain.

use anyhow::{Context, Result, ensure};

use super::alone;
use super::lab::{Lab, build};
use crate::guest::{PATIENCE, Spec};
use crate::image::Options;
use crate::platform::Arch;

pub(super) fn it_boots_and_says_what_it_has(lab: &mut Lab) -> Result<()> {
    let (_guest, mut console) = lab.start(&lab.spec())?;
    let text = console.wait_for("ready; type help", PATIENCE)?;
    for line in [
        "on Xen 4.17",
        "32 MiB",
        "net: vif/0 00:16:3e:00:00:02 connected to d0, MTU 1500",
        "disk: vbd/51712 connected, 64 MiB, sectors of 512 bytes, read and write",
        "net: address 10.0.0.2/24, gateway 10.0.0.1",
    ] {
        ensure!(text.contains(line), "no {line:?} on the console:\n{text}");
    }
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        ensure!(
            line.starts_with('[') && line.contains("INFO"),
            "not a log line with time and level: {line:?}"
        );
    }
    ensure!(lab.site()?.get("/hello.txt")?.expect(200)?.body == b"Hello from the disk.\n", "another file");
    Ok(())
}

pub(super) fn sixteen_mebibytes_are_enough(lab: &mut Lab) -> Result<()> {
    let (_guest, _console) = lab.start(&Spec { memory: 16, ..lab.spec() })?;
    let site = lab.site()?;
    ensure!(site.get("/large.bin")?.expect(200)?.body.len() == 8 << 20, "not the whole file");
    ensure!(site.metric("memory_free_bytes")? > 0, "no memory is left");
    Ok(())
}

pub(super) fn a_command_line_that_makes_no_sense_is_reported(lab: &mut Lab) -> Result<()> {
    let cmdline = "ip=10.0.0.2/24 gw=nonsense colour=blue log=loud ip=1.2.3 =".to_owned();
    let (_guest, mut console) = lab.start(&Spec { cmdline, ..lab.spec() })?;
    let text = console.wait_for("ready; type help", PATIENCE)?;
    for word in ["gw=nonsense", "colour=blue", "log=loud", "ip=1.2.3"] {
        ensure!(text.contains(&format!("cannot use {word:?}")), "nothing is said of {word}:\n{text}");
    }
    // What can be used is used.
    lab.site()?.get("/hello.txt")?.expect(200)?;
    Ok(())
}

pub(super) fn a_sealed_image_has_its_configuration_built_in(lab: &mut Lab) -> Result<()> {
    let words = "ip=10.0.0.2/24 log=debug".to_owned();
    lab.put("/sealed", Options { cmdline: Some(words), ..Options::default() })?;
    let spec = Spec { kernel: "/sealed".into(), cmdline: "ip=10.9.9.9/24".into(), ..lab.spec() };
    let (_guest, mut console) = lab.start(&spec)?;
    let text = console.wait_for("ready; type help", PATIENCE)?;
    ensure!(
        text.contains("address 10.0.0.2/24") && !text.contains("10.9.9.9"),
        "the command line was taken:\n{text}"
    );
    lab.site()?.get("/hello.txt")?.expect(200)?;
    console.wait_for("DEBUG", PATIENCE).context("the built-in log level")?;
    Ok(())
}

pub(super) fn an_image_of_the_console_alone_boots(lab: &mut Lab) -> Result<()> {
    lab.put("/console-only", Options { features: Some(Vec::new()), ..Options::default() })?;
    let spec = Spec { kernel: "/console-only".into(), memory: 16, ..lab.spec() };
    let (guest, mut console) = lab.start(&spec)?;
    let text = console.wait_for("ready; type help", PATIENCE)?;
    ensure!(!text.contains("net:") && !text.contains("disk:"), "it has more than a console:\n{text}");
    lab.dom0.run(&format!("xl shutdown {}", guest.name()), PATIENCE)?;
    guest.wait("end", |listed| listed.is_none())?;
    Ok(())
}

pub(super) fn the_toolstack_can_give_the_address(lab: &mut Lab) -> Result<()> {
    let vif = Some("bridge=xenbr0,mac=00:16:3e:00:00:02,ip=10.0.0.2".to_owned());
    let (_guest, mut console) = lab.start(&Spec { vif, cmdline: String::new(), ..lab.spec() })?;
    console.wait_for("net: address 10.0.0.2/24", PATIENCE)?;
    lab.site()?.get("/hello.txt")?.expect(200)?;
    Ok(())
}

pub(super) fn without_an_address_it_asks_dhcp(lab: &mut Lab) -> Result<()> {
    let (_guest, mut console) = lab.start(&Spec { cmdline: String::new(), ..lab.spec() })?;
    console.wait_for("asking DHCP", PATIENCE)?;
    // The bed's server gives addresses from 10.0.0.100 on.
    let text = console.wait_for("gateway", PATIENCE)?;
    let address = text.split("net: address ").nth(1).and_then(|rest| rest.split('/').next());
    let address = address.with_context(|| format!("no address:\n{text}"))?.to_owned();
    ensure!(address.starts_with("10.0.0.1"), "address {address}");
    let page = lab.dom0.run(
        &format!("exec 3<>/dev/tcp/{address}/80; printf 'GET /hello.txt HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"),
        PATIENCE,
    )?;
    ensure!(page.contains("Hello from the disk."), "{page}");
    Ok(())
}

pub(super) fn it_boots_beside_oxenstored(lab: &mut Lab) -> Result<()> {
    let (guest, mut console) = lab.start(&lab.spec())?;
    console.wait_for("ready; type help", PATIENCE)?;
    lab.site()?.get("/hello.txt")?.expect(200)?;
    lab.dom0.run(&format!("xl shutdown {}", guest.name()), PATIENCE)?;
    guest.wait("end", |listed| listed.is_none())?;
    Ok(())
}

pub(super) fn it_boots_as_the_first_domain(arch: Arch) -> Result<()> {
    let qemu = alone::start(arch, "unikernel", &build(arch, Options::default())?, 1, "log=info")?;
    qemu.wait_for(&["ready; type help"], PATIENCE)?;
    let text = qemu.serial();
    // The first domain has neither a console of its own nor a store.
    for line in ["unikernel 0.", "lines go to Xen's log", "no devices, no name"] {
        ensure!(text.contains(line), "no {line:?} in\n{text}");
    }
    Ok(())
}

pub(super) fn it_boots_without_a_dom0(arch: Arch) -> Result<()> {
    let qemu = alone::start_dom0less(arch, "unikernel", &build(arch, Options::default())?, "log=info")?;
    qemu.wait_for(&["ready; type help", "Panic on CPU"], PATIENCE)?;
    let text = qemu.serial();
    // Nobody made it a console or a store, and it says so and goes on.
    for line in ["unikernel 0.", "no devices, no name", "ready; type help"] {
        ensure!(text.contains(line), "no {line:?} in\n{text}");
    }
    Ok(())
}
