//! The application as a process of this machine, on the mocks: how it is started, and the web server's checks on it.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::image::{self, out_dir};
use crate::tally::{Tally, report};
use crate::web::{self, Site};
use crate::{fat, hello, qemu};

/// How long the process may take to answer its first request.
const PATIENCE: Duration = Duration::from_secs(30);

/// Builds a kernel as a program.
fn build(package: &str) -> Result<PathBuf> {
    let mut cargo = image::cargo();
    // The data of a page crosses a dozen copies here, so it is worth to be compiled well.
    cargo.args(["build", "--quiet", "--release", "--package", package, "--features", "hosted"]);
    if !cargo.status().context("cannot start cargo")?.success() {
        bail!("{package} does not build as a program; cargo says why above");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| image::workspace().join("target"), PathBuf::from);
    Ok(target.join("release").join(package))
}

fn command(port: u16, disk: Option<&Path>, more: &[&str], cmdline: &str) -> Result<Command> {
    let mut command = Command::new(build("unikernel")?);
    command.arg("--forward").arg(format!("{port}:80"));
    if let Some(disk) = disk {
        command.arg("--disk").arg(disk);
    }
    command.args(more).arg("--").args(cmdline.split_ascii_whitespace());
    Ok(command)
}

/// Runs the application in the foreground, until it ends: this process becomes that one, which takes Ctrl-C as it likes.
pub(crate) fn run(port: u16, disk: Option<&Path>, cmdline: &str) -> Result<ExitCode> {
    let mut command = command(port, disk, &[], cmdline)?;
    let address = format!("http://127.0.0.1:{port}/");
    println!("\n    {address}          the files of its disk\n    {address}-/status  how it does\n");
    Err(command.exec()).context("cannot start the program")
}

/// A running process, which ends when this is dropped.
struct Host(Child);

impl Drop for Host {
    fn drop(&mut self) {
        // It fails only for a process that has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the checks of the web server on the application on the mocks, and again while it is migrated all the time.
pub(crate) fn check() -> Result<Tally> {
    let disk = out_dir()?.join("host.img");
    let contents = web::contents();
    let files: Vec<(&str, &[u8])> = contents.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    fat::image(&disk, 64, &files)?;
    let mut tally = Tally::default();
    {
        let (_host, site) = start(&disk, &[])?;
        for (name, check) in web::CHECKS {
            report(&mut tally, name, || check(&site));
        }
        report(&mut tally, "times-of-files", || times_of_files(&site, &disk));
    }
    {
        let (_host, site) = start(&disk, &["--migrate", "100"])?;
        for (name, check) in web::CHECKS {
            report(&mut tally, &format!("migrated-{name}"), || check(&site));
        }
        report(&mut tally, "migrated", || {
            let times = site.metric("resumes_total")?;
            ensure!(times > 3, "it was migrated {times} times");
            Ok(())
        });
    }
    report(&mut tally, "hello", || hello::as_a_process(&build("hello")?, "hello"));
    Ok(tally)
}

/// Starts the application, and waits until it answers.
fn start(disk: &Path, more: &[&str]) -> Result<(Host, Site)> {
    let port = qemu::free_port()?;
    let mut command = command(port, Some(disk), more, "ip=10.0.0.2/24 gw=10.0.0.1")?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let host = Host(command.spawn().context("cannot start the program")?);
    let site = Site::new(port);
    let end = Instant::now() + PATIENCE;
    while let Err(error) = site.get("/-/metrics") {
        if Instant::now() > end {
            return Err(error.context("the application on the mocks does not answer"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((host, site))
}

/// A file has the time at which it was written, not that at which the disk was opened or the connection began.
fn times_of_files(site: &Site, disk: &Path) -> Result<()> {
    let written = |name: &str| {
        site.put(&format!("/{name}"), b"a file")?.expect(201)?;
        let time = fat::modified(disk, name)?;
        site.delete(&format!("/{name}"))?.expect(204)?;
        anyhow::Ok(time)
    };
    let first = written("FIRST.TXT")?;
    // FAT counts in steps of two seconds.
    std::thread::sleep(Duration::from_secs(3));
    let second = written("SECOND.TXT")?;
    ensure!(second > first, "the first file is of {first:?}, the second of {second:?}");
    Ok(())
}
