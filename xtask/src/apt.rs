//! Debian's packages, of this machine's architecture and of others, without a change to what this machine has installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::deb::{is_root, output};

/// What to fetch.
#[derive(Debug, Clone)]
pub(crate) struct Packages<'a> {
    /// Debian's name of their architecture.
    pub(crate) architecture: &'a str,
    /// A package that only names the one of the current kernel, which is fetched in its place.
    pub(crate) kernel: Option<&'a str>,
    /// Their names.
    pub(crate) names: Vec<String>,
    /// What they are, for the one who waits.
    pub(crate) what: String,
}

/// Debian's name of this machine's architecture.
pub(crate) const OWN: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// Brings the packages' files into the folder `into`, and returns them. `dir` is for what apt has to remember.
pub(crate) fn download(packages: &Packages<'_>, dir: &Path, into: &Path) -> Result<Vec<PathBuf>> {
    if packages.architecture == OWN
        && let Ok(files) = download_by(&Lists::system(), packages, into)
    {
        return Ok(files);
    }
    download_by(&Lists::fetch(packages.architecture, dir)?, packages, into)
        .with_context(|| format!("cannot download {}", packages.what))
}

/// apt's lists of packages: this machine's, or, where those are missing, old or of another architecture, fresh ones beside the
/// bed, which need no rights of anybody.
struct Lists(Vec<String>);

impl Lists {
    /// The lists of this machine.
    fn system() -> Self {
        Self(sandbox())
    }

    /// Lists in a folder of our own, fetched now, from where this machine has its packages.
    fn fetch(architecture: &str, dir: &Path) -> Result<Self> {
        let apt = dir.join("apt");
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = apt.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
        }
        // Nothing is installed there.
        let status = apt.join("status");
        fs::write(&status, "").with_context(|| format!("cannot write {}", status.display()))?;
        let option = |key: &str, value: &str| ["-o".to_owned(), format!("{key}={value}")];
        let path = |key: &str, value: &Path| option(key, &value.display().to_string());
        let mut options = sandbox();
        options.extend(option("APT::Architecture", architecture));
        options.extend(option("APT::Architectures", architecture));
        options.extend(path("Dir::State", &apt));
        options.extend(path("Dir::State::lists", &apt.join("lists")));
        options.extend(path("Dir::State::status", &status));
        options.extend(path("Dir::Cache", &apt.join("cache")));
        // Descriptions for shops of programs.
        options.extend(option("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false"));
        let lists = Self(options);
        let spinner = ProgressBar::new_spinner().with_message("fetching Debian's lists of packages");
        spinner.enable_steady_tick(Duration::from_millis(100));
        let fetched = lists.run("apt-get", &["update"], dir);
        spinner.finish_and_clear();
        fetched.context("cannot fetch Debian's lists of packages").map(|_| lists)
    }

    fn run(&self, program: &str, args: &[&str], dir: &Path) -> Result<String> {
        output(program, &[&self.0.iter().map(String::as_str).collect::<Vec<_>>(), args].concat(), dir)
    }

    /// The real kernel package behind the one that only names it.
    fn kernel_package(&self, name: &str, dir: &Path) -> Result<String> {
        let text = self.run("apt-cache", &["depends", name], dir)?;
        text.lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with("linux-image-"))
            .map(str::to_owned)
            .with_context(|| format!("apt knows no package {name} (this bed needs Debian 12)"))
    }
}

/// apt's own user may not write in a build folder.
fn sandbox() -> Vec<String> {
    if is_root() { vec!["-o".to_owned(), "APT::Sandbox::User=root".to_owned()] } else { Vec::new() }
}

/// A file that apt can fetch.
struct Deb {
    package: String,
    path: PathBuf,
    size: u64,
}

/// Parses one line of `apt-get download --print-uris`: `'URL' FILE SIZE HASH`.
fn parse_uri(line: &str, dir: &Path) -> Option<Deb> {
    let mut words = line.strip_prefix('\'')?.split_whitespace().skip(1);
    let file = words.next()?;
    let size = words.next()?.parse().ok()?;
    let package = file.split('_').next()?.to_owned();
    Some(Deb { package, path: dir.join(file), size })
}

fn download_by(lists: &Lists, packages: &Packages<'_>, dir: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let kernel = packages.kernel.map(|name| lists.kernel_package(name, dir)).transpose()?;
    let names: Vec<&str> = packages.names.iter().chain(&kernel).map(String::as_str).collect();
    let text = lists
        .run("apt-get", &[["download", "-q", "--print-uris"].as_slice(), &names].concat(), dir)
        .with_context(|| {
        format!("apt cannot find the packages of {} (Debian 12 has them)", packages.what)
    })?;
    let missing: Vec<Deb> = text.lines().filter_map(|line| parse_uri(line, dir)).collect();

    // apt names only the files that are not there yet.
    let have = |deb: &Deb| fs::metadata(&deb.path).map_or(0, |meta| meta.len());
    if !missing.is_empty() {
        let message = format!("downloading {}", packages.what);
        let bar = bar(missing.iter().map(|deb| deb.size).sum(), message, "{bytes}/{total_bytes}");
        let mut apt = Command::new("apt-get")
            .args(&lists.0)
            .args(["download", "-q"])
            .args(missing.iter().map(|deb| &deb.package))
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run apt-get")?;
        while apt.try_wait().context("cannot wait for apt-get")?.is_none() {
            bar.set_position(missing.iter().map(&have).sum());
            std::thread::sleep(Duration::from_millis(100));
        }
        let apt = apt.wait_with_output().context("cannot wait for apt-get")?;
        bar.finish_and_clear();
        if !apt.status.success() {
            let message = String::from_utf8_lossy(&apt.stderr);
            bail!("apt-get download failed: {}", message.trim());
        }
    }

    let files: Vec<PathBuf> = fs::read_dir(dir)
        .with_context(|| format!("cannot list {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
        .collect();
    if files.len() != names.len() {
        // Packages of an older run that was interrupted, in other versions.
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        bail!("{} packages are there instead of {}: run this again", files.len(), names.len());
    }
    Ok(files)
}

fn bar(length: u64, what: String, unit: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!("{{msg}} {{bar:40}} {unit}"))
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style).with_message(what)
}

/// Unpacks packages into a folder.
pub(crate) fn unpack(files: &[PathBuf], what: &str, root: &Path) -> Result<()> {
    let bar = bar(files.len() as u64, format!("unpacking {what}"), "{pos}/{len}");
    fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
    for file in files {
        output("dpkg", &["-x".as_ref(), file.as_os_str(), root.as_os_str()], root)
            .with_context(|| format!("cannot unpack {}", file.display()))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_apt_names_package_file_and_size() {
        let line = "'http://h/busybox.deb' busybox-static_1%3a1.35.0_amd64.deb 931684 SHA256:00";
        let deb = parse_uri(line, Path::new("/d")).expect("a valid line");
        assert_eq!(deb.package, "busybox-static");
        assert_eq!(deb.path, Path::new("/d/busybox-static_1%3a1.35.0_amd64.deb"));
        assert_eq!(deb.size, 931684);
        assert!(parse_uri("W: a warning", Path::new("/d")).is_none());
    }
}
