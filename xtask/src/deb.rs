//! The programs of the test bed, taken from Debian's packages without installing them.
//!
//! Installing Xen and a kernel would rewrite the boot menu of the machine this runs on, so the packages are only
//! downloaded and unpacked below `target/bed`. QEMU has no such effect and is installed normally.

use anyhow::{Context, Result, bail};
use fs4::FileExt;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::apt::{self, Packages};
use crate::platform::{Emulator, Files, Platform};

/// What is unpacked: the hypervisor, its toolstack, dom0's programs, and the libraries they load. `XEN` is the version of Xen,
/// `ARCH` the architecture.
const PACKAGES: &[&str] = &[
    "xen-hypervisor-XEN-ARCH",
    "xen-utils-XEN",
    "xen-utils-common",
    "xenstore-utils",
    "busybox-static",
    "bash",
    "bridge-utils",
    "coreutils",
    "ethtool",
    "iproute2",
    "mount",
    "util-linux",
    "util-linux-extra",
    "libacl1",
    "libattr1",
    "libblkid1",
    "libbpf1",
    "libbsd0",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libelf1",
    "libgcc-s1",
    "libmd0",
    "libmnl0",
    "libmount1",
    "libncurses6",
    "libpcre2-8-0",
    "libselinux1",
    "libsmartcols1",
    "libtinfo6",
    "libuuid1",
    "libxencall1",
    "libxendevicemodel1",
    "libxenevtchn1",
    "libxenforeignmemory1",
    "libxengnttab1",
    "libxenhypfs1",
    "libxenmiscXEN",
    "libxenstore4",
    "libxentoolcore1",
    "libxentoollog1",
    "libxtables12",
    "libyajl2",
    "libzstd1",
    "liblzma5",
    "libnl-3-200",
    "libnl-route-3-200",
    "libfdt1",
    "xz-utils",
    "zlib1g",
];

/// Changes whenever the folder's layout does, so that an old cache is not taken for a new one.
const LAYOUT: &str = "2";

/// The unpacked packages.
#[derive(Debug, Clone)]
pub struct Bed {
    /// What they are for.
    pub platform: &'static Platform,
    /// The bed's folder.
    pub dir: PathBuf,
    /// The folder that holds the unpacked packages.
    pub root: PathBuf,
}

/// The folder of all beds: `target/bed` of this workspace, or `XEN_BED_DIR` where that is set.
pub(crate) fn dir() -> PathBuf {
    match std::env::var_os("XEN_BED_DIR") {
        Some(dir) => dir.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bed"),
    }
}

/// Holds off every other process that fills the same folder, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Waits until no other process is filling `dir`.
pub fn lock(dir: &Path) -> Result<Lock> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    FileExt::lock(&file).with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(Lock { _file: file })
}

/// Makes sure that the packages of a platform are downloaded and unpacked, and keeps its folder locked.
pub fn ensure(platform: &'static Platform) -> Result<(Lock, Bed)> {
    let dir = dir().join(platform.folder);
    let lock = lock(&dir)?;
    let dir = dir.canonicalize().with_context(|| format!("cannot open {}", dir.display()))?;
    let bed = Bed { platform, root: dir.join("root"), dir };
    let names = names(platform);
    let wanted = format!("{LAYOUT} {} {}\n", platform.kernel, names.join(" "));
    let packages = Packages {
        architecture: platform.debian,
        kernel: Some(platform.kernel),
        names,
        what: format!("Xen {} for {}", platform.xen, platform.name),
    };
    unpacked(&bed.dir, &bed.root, &wanted, &packages, |root| place_kernels(&bed, root))?;
    Ok((lock, bed))
}

/// The packages of a platform, without the kernel's.
fn names(platform: &Platform) -> Vec<String> {
    let filled = |name: &&str| name.replace("XEN", platform.xen).replace("ARCH", platform.debian);
    PACKAGES.iter().map(filled).collect()
}

/// Makes sure that other packages, which dom0 does not need, are unpacked in a folder of their own, and returns it. The
/// caller holds the lock.
pub(crate) fn extra(_lock: &Lock, bed: &Bed, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let root = bed.dir.join(name);
    let wanted = format!("{LAYOUT} {}\n", packages.join(" "));
    let packages = Packages {
        architecture: bed.platform.debian,
        kernel: None,
        names: packages.iter().map(|name| (*name).to_owned()).collect(),
        what: packages.join(", "),
    };
    unpacked(&bed.dir, &root, &wanted, &packages, |_| Ok(()))?;
    Ok(root)
}

/// Downloads and unpacks packages to `root` unless its stamp says `wanted`; `finish` sees them before they are in their place.
fn unpacked(
    dir: &Path,
    root: &Path,
    wanted: &str,
    packages: &Packages<'_>,
    finish: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    if fs::read_to_string(root.join("stamp")).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    // Unpacked next to its place, so that an interrupted run never looks complete.
    let (debs, fresh) = (root.with_extension("debs"), root.with_extension("new"));
    let files = apt::download(packages, dir, &debs)?;
    for old in [&fresh, root] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    apt::unpack(&files, &packages.what, &fresh)?;
    finish(&fresh)?;
    fs::write(fresh.join("stamp"), wanted).context("cannot write the stamp of the unpacked packages")?;
    fs::rename(&fresh, root).with_context(|| format!("cannot rename {}", fresh.display()))?;
    fs::remove_dir_all(&debs).with_context(|| format!("cannot remove {}", debs.display()))
}

/// Puts the hypervisor and dom0's kernel where QEMU finds them under names without versions.
fn place_kernels(bed: &Bed, root: &Path) -> Result<()> {
    let boot = &bed.platform.boot;
    let (xen, kernel) = (root.join("boot").join(boot.xen), vmlinuz(root)?);
    (boot.place)(&Files { root, dir: &bed.dir, xen: &xen, kernel: &kernel })
}

/// dom0's kernel, as its package has it.
pub(crate) fn vmlinuz(root: &Path) -> Result<PathBuf> {
    let boot = root.join("boot");
    fs::read_dir(&boot)
        .with_context(|| format!("cannot list {}", boot.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .with_context(|| format!("no kernel in {}", boot.display()))
}

/// Finds QEMU, and installs it where this process may.
pub(crate) fn ensure_qemu(emulator: &Emulator) -> Result<PathBuf> {
    let Emulator { program, package, .. } = emulator;
    if let Some(path) = which(program) {
        return Ok(path);
    }
    let install = format!("apt-get install -y --no-install-recommends {package}");
    if is_root() {
        // A fresh machine has no lists of packages, or old ones that name files which are gone.
        for words in [install.as_str(), "apt-get update", &install] {
            eprintln!("{program} is missing, running: {words}");
            let mut words = words.split(' ');
            let status = Command::new(words.next().unwrap_or_default())
                .args(words)
                .env("DEBIAN_FRONTEND", "noninteractive")
                .stdout(Stdio::null())
                .status();
            let done = status.is_ok_and(|status| status.success());
            if let Some(path) = which(program).filter(|_| done) {
                return Ok(path);
            }
        }
    }
    bail!("{program} is not installed, run as root: apt-get update && {install}")
}

/// The path of a program, as a shell would find it.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Runs a program to its end and returns what it printed.
pub(crate) fn output<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: &[S], dir: &Path) -> Result<String> {
    let name = program.as_ref().to_string_lossy().into_owned();
    let output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}, which the test bed needs"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed ({}): {}", output.status, message.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::Arch;

    #[test]
    fn packages_are_of_the_platforms_version_and_architecture() {
        let names = names(Arch::Arm64.platform());
        for name in ["xen-hypervisor-4.17-arm64", "xen-utils-4.17", "xen-utils-common", "libxenmisc4.17"] {
            assert!(names.iter().any(|found| found == name), "no {name} in {names:?}");
        }
    }
}
