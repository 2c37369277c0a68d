//! What a user of the published crates does: a project of their own, from packages alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;

use super::lab::Lab;
use crate::check::LIBRARIES;
use crate::guest::{PATIENCE, Spec};
use crate::hello;
use crate::image::{format, workspace};
use crate::new;
use crate::toolchain::Toolchain;

/// The project's name, which is the test's.
const NAME: &str = "new-project";

/// Packs every crate, makes a project that depends on the packages, and runs it as a process and on real Xen.
pub(super) fn from_the_packages_alone(lab: &mut Lab) -> Result<()> {
    let progress = ProgressBar::new_spinner();
    progress.enable_steady_tick(Duration::from_millis(100));
    progress.set_message("packing the crates");
    let packages = packages()?;
    let project = Project::new(&packages)?;
    progress.set_message("building the project as a process");
    project.build(&[], None)?;
    progress.set_message("running it as a process");
    hello::as_a_process(&project.built(None, "debug"), NAME)?;
    progress.set_message("building its image");
    let target = lab.arch.platform().target;
    project.build(&["--no-default-features", "--profile", "image"], target)?;
    progress.set_message("running it on Xen");
    let image = project.built(target, "image");
    let file = fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?;
    let (arch, file) = format::loadable(file)?;
    ensure!(arch == lab.arch, "the image is for {arch:?}");
    on_xen(lab, &file)?;
    progress.finish_and_clear();
    Ok(())
}

/// Where this test keeps what the next run of it need not build again.
fn folder() -> PathBuf {
    workspace().join("target/new-project")
}

/// Packs the crates as they would be published, and unpacks them into a folder of their own.
fn packages() -> Result<PathBuf> {
    let (packed, unpacked) = (folder().join("packed"), folder().join("crates"));
    for old in [&packed.join("package"), &unpacked] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    let mut package = cargo(workspace(), &["package", "--no-verify", "--allow-dirty"]);
    package.args(LIBRARIES.into_iter().flat_map(|name| ["--package", name]));
    run(package.arg("--target-dir").arg(&packed))?;
    fs::create_dir_all(&unpacked).with_context(|| format!("cannot create {}", unpacked.display()))?;
    let mut files = Vec::new();
    for entry in fs::read_dir(packed.join("package")).context("cargo has packed nothing")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "crate") {
            files.push(path);
        }
    }
    ensure!(files.len() == LIBRARIES.len(), "{} packages of {} crates", files.len(), LIBRARIES.len());
    for file in files {
        // With the time of now: in packages all files have the same one, by which cargo takes those of another day for these.
        run(Command::new("tar").args(["--touch", "-xzf"]).arg(file).arg("-C").arg(&unpacked))?;
    }
    Ok(unpacked)
}

/// A project outside of the workspace, which goes when this is dropped.
struct Project(PathBuf);

impl Project {
    fn new(packages: &Path) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("{NAME}-{}", std::process::id()));
        let project = Self(path);
        new::make(NAME, &project.0, packages)?;
        // What the workspace was tried with, so that this test depends on no release of today.
        fs::copy(workspace().join("Cargo.lock"), project.0.join("Cargo.lock"))
            .context("cannot copy Cargo.lock")?;
        Ok(project)
    }

    /// Builds it for this machine, or for another.
    fn build(&self, args: &[&str], target: Option<&str>) -> Result<()> {
        let mut build = cargo(&self.0, &["build"]);
        if let Some(target) = target {
            Toolchain::bare(target)?.choose(&mut build, target);
        }
        run(build.args(args).arg("--target-dir").arg(folder().join("target")))?;
        // Nothing else is the project's than the packages: no path into the workspace's sources.
        let lock = fs::read_to_string(self.0.join("Cargo.lock")).context("cargo wrote no Cargo.lock")?;
        for name in LIBRARIES {
            ensure!(
                lock.contains(&format!("name = \"{name}\"\n")),
                "the project does without {name}:\n{lock}"
            );
        }
        ensure!(!lock.contains("name = \"webserver\""), "the lock is the workspace's:\n{lock}");
        Ok(())
    }

    fn built(&self, target: Option<&str>, profile: &str) -> PathBuf {
        folder().join("target").join(target.unwrap_or_default()).join(profile).join(NAME)
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn cargo(dir: &Path, args: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(dir).args(args);
    cargo
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn on_xen(lab: &mut Lab, image: &[u8]) -> Result<()> {
    const KERNEL: &str = "/new-project";
    lab.dom0.put(KERNEL, image)?;
    let spec = Spec { kernel: KERNEL.into(), cmdline: String::new(), disk: None, ..lab.spec() };
    let (guest, mut console) = lab.start(&spec)?;
    console.wait_for("listening", PATIENCE)?;
    hello::is_answered(lab.dom0.http_port()).context("the guest")?;
    guest.wait("end", |listed| listed.is_none())?;
    let text = console.text();
    ensure!(text.contains(&format!("I am {}", guest.name())), "the guest says:\n{text}");
    Ok(())
}
