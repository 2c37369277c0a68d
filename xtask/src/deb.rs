//! The programs of the test bed, taken from Debian's packages without installing them.
//!
//! Installing Xen and a kernel would rewrite the boot menu of the machine this runs on, so the packages are only
//! downloaded and unpacked below `target/bed`. QEMU has no such effect and is installed normally.

use anyhow::{Context, Result, bail};
use fs4::FileExt;
use indicatif::{ProgressBar, ProgressStyle};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What is unpacked: the hypervisor, its toolstack, dom0's programs, and the libraries they load.
const PACKAGES: &[&str] = &[
    "xen-hypervisor-4.17-amd64",
    "xen-utils-4.17",
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
    "libxenmisc4.17",
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

/// The package that names the current kernel. The cloud kernels lack what a dom0 needs.
const KERNEL: &str = "linux-image-amd64";

/// Changes whenever the folder's layout does, so that an old cache is not taken for a new one.
const LAYOUT: &str = "2";

/// The unpacked packages.
#[derive(Debug, Clone)]
pub struct Bed {
    /// `target/bed`.
    pub dir: PathBuf,
    /// The folder that holds the unpacked packages.
    pub root: PathBuf,
}

impl Bed {
    /// The hypervisor, as the ELF that QEMU can load.
    pub const XEN: &str = "xen";
    /// dom0's kernel.
    pub const KERNEL: &str = "vmlinux";
}

/// `target/bed` of this workspace, or `XEN_BED_DIR` where that is set.
pub fn dir() -> PathBuf {
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

/// Makes sure that the packages are downloaded and unpacked. The caller holds the lock.
pub fn ensure(_lock: &Lock, dir: &Path) -> Result<Bed> {
    let dir = dir.canonicalize().with_context(|| format!("cannot open {}", dir.display()))?;
    let bed = Bed { root: dir.join("root"), dir };
    let stamp = bed.root.join("stamp");
    let wanted = format!("{LAYOUT} {KERNEL} {}\n", PACKAGES.join(" "));
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(bed);
    }
    if !cfg!(target_arch = "x86_64") {
        bail!("the test bed needs an x86-64 machine: its programs are x86-64 programs");
    }

    let debs = bed.dir.join("debs");
    fs::create_dir_all(&debs).with_context(|| format!("cannot create {}", debs.display()))?;
    let files = download(&debs)?;
    // Unpacked next to its place, so that an interrupted run never looks complete.
    let fresh = bed.dir.join("root.new");
    for old in [&fresh, &bed.root] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    unpack(&files, &fresh)?;
    place_kernels(&bed.dir, &fresh)?;
    fs::write(fresh.join("stamp"), wanted).context("cannot write the stamp of the unpacked packages")?;
    fs::rename(&fresh, &bed.root).with_context(|| format!("cannot rename {}", fresh.display()))?;
    fs::remove_dir_all(&debs).with_context(|| format!("cannot remove {}", debs.display()))?;
    Ok(bed)
}

/// Makes sure that other packages, which dom0 does not need, are unpacked in a folder of their own, and returns it. The
/// caller holds the lock.
pub(crate) fn extra(_lock: &Lock, bed: &Bed, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let root = bed.dir.join(name);
    let wanted = format!("{LAYOUT} {}\n", packages.join(" "));
    if fs::read_to_string(root.join("stamp")).is_ok_and(|found| found == wanted) {
        return Ok(root);
    }
    let (debs, fresh) = (bed.dir.join(format!("{name}.debs")), bed.dir.join(format!("{name}.new")));
    for old in [&debs, &fresh, &root] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    fs::create_dir_all(&debs).with_context(|| format!("cannot create {}", debs.display()))?;
    let files = fetch(&Lists::system(), packages, &debs)
        .or_else(|_| fetch(&Lists::fetch(&bed.dir)?, packages, &debs))
        .with_context(|| format!("cannot download {}", packages.join(", ")))?;
    unpack(&files, &fresh)?;
    fs::write(fresh.join("stamp"), wanted).context("cannot write the stamp of the unpacked packages")?;
    fs::rename(&fresh, &root).with_context(|| format!("cannot rename {}", fresh.display()))?;
    fs::remove_dir_all(&debs).with_context(|| format!("cannot remove {}", debs.display()))?;
    Ok(root)
}

/// Downloads packages, and of what they depend on what this machine lacks, into a folder below `dir`, and returns the files.
/// The lists are fetched anew, for the newest versions. The caller holds the lock.
pub(crate) fn with_libraries(lock: &Lock, dir: &Path, packages: &[&str]) -> Result<Vec<PathBuf>> {
    forget_libraries(lock, dir)?;
    let mut lists = Lists::fetch(dir)?;
    let cache = dir.join("apt/more");
    let archives = cache.join("archives");
    fs::create_dir_all(archives.join("partial"))
        .with_context(|| format!("cannot create {}", archives.display()))?;
    // Nothing is installed, so the machine's lock is not needed.
    let options = [format!("Dir::Cache={}", cache.display()), "Debug::NoLocking=true".to_owned()];
    lists.0.extend(options.into_iter().flat_map(|option| ["-o".to_owned(), option]));
    let words = ["install", "-q", "-y", "--download-only", "--no-install-recommends"];
    lists
        .run("apt-get", &[&words, packages].concat(), dir)
        .with_context(|| format!("cannot download {}", packages.join(", ")))?;
    let entries = fs::read_dir(&archives).with_context(|| format!("cannot list {}", archives.display()))?;
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(files.filter(|path| path.extension().is_some_and(|end| end == "deb")).collect())
}

/// Removes what [`with_libraries`] downloaded. The caller holds the lock.
pub(crate) fn forget_libraries(_lock: &Lock, dir: &Path) -> Result<()> {
    let cache = dir.join("apt/more");
    match fs::remove_dir_all(&cache) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", cache.display()))
        }
        _ => Ok(()),
    }
}

/// Downloads a few packages into `dir`, and returns their files.
fn fetch(lists: &Lists, packages: &[&str], dir: &Path) -> Result<Vec<PathBuf>> {
    let mut args = vec!["download", "-q"];
    if is_root() {
        // apt's own user may not write in a build folder.
        args.extend(["-o", "APT::Sandbox::User=root"]);
    }
    args.extend(packages);
    lists.run("apt-get", &args, dir)?;
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
}

/// Finds QEMU, and installs it where this process may.
pub fn ensure_qemu() -> Result<PathBuf> {
    const NAME: &str = "qemu-system-x86_64";
    const INSTALL: &str = "apt-get install -y --no-install-recommends qemu-system-x86";
    if let Some(path) = which(NAME) {
        return Ok(path);
    }
    if is_root() {
        // A fresh machine has no lists of packages, or old ones that name files which are gone.
        for words in [INSTALL, "apt-get update", INSTALL] {
            eprintln!("{NAME} is missing, running: {words}");
            let mut words = words.split(' ');
            let status = Command::new(words.next().unwrap_or_default())
                .args(words)
                .env("DEBIAN_FRONTEND", "noninteractive")
                .stdout(Stdio::null())
                .status();
            let done = status.is_ok_and(|status| status.success());
            if let Some(path) = which(NAME).filter(|_| done) {
                return Ok(path);
            }
        }
    }
    bail!("{NAME} is not installed, run as root: apt-get update && {INSTALL}")
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

/// Where the packages keep their shared libraries.
const LIB_DIRS: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
/// The packages' dynamic loader.
pub(crate) const LOADER: &str = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";

/// Runs the packages' loader on one of their programs, with their libraries, whatever this machine has of its own.
/// With `--list` as the program the loader lists the libraries of the next argument.
pub(crate) fn run_inside(root: &Path, program: &str, args: &[&str], dir: &Path) -> Result<String> {
    let libraries = LIB_DIRS.map(|dir| root.join(dir).display().to_string()).join(":");
    let program =
        if program == "--list" { program.to_owned() } else { root.join(program).display().to_string() };
    let mut all = vec!["--library-path", &libraries, &program];
    all.extend(args);
    output(root.join(LOADER), &all, dir)
}

/// apt's lists of packages: this machine's, or, where those are missing or old, fresh ones beside the bed, which need no
/// rights of anybody.
struct Lists(Vec<String>);

impl Lists {
    /// The lists of this machine.
    fn system() -> Self {
        Self(Vec::new())
    }

    /// Lists in a folder of our own, fetched now.
    fn fetch(dir: &Path) -> Result<Self> {
        let apt = dir.join("apt");
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = apt.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
        }
        let option = |key: &str, value: &Path| ["-o".to_owned(), format!("{key}={}", value.display())];
        let mut options: Vec<String> = option("Dir::State::lists", &apt.join("lists")).into();
        options.extend(option("Dir::Cache", &apt.join("cache")));
        if is_root() {
            // apt's own user may not write in a build folder.
            options.extend(["-o".to_owned(), "APT::Sandbox::User=root".to_owned()]);
        }
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
    fn kernel_package(&self, dir: &Path) -> Result<String> {
        let text = self.run("apt-cache", &["depends", KERNEL], dir)?;
        text.lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with("linux-image-"))
            .map(str::to_owned)
            .with_context(|| format!("apt knows no package {KERNEL} (this bed needs Debian 12)"))
    }
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

/// Brings the packages' files into `dir`, and returns them.
fn download(dir: &Path) -> Result<Vec<PathBuf>> {
    download_by(&Lists::system(), dir).or_else(|_| download_by(&Lists::fetch(dir)?, dir))
}

fn download_by(lists: &Lists, dir: &Path) -> Result<Vec<PathBuf>> {
    let kernel = lists.kernel_package(dir)?;
    let mut args: Vec<&str> = lists.0.iter().map(String::as_str).collect();
    args.extend(["download", "-q"]);
    if is_root() {
        // apt's own user may not write in a build folder.
        args.extend(["-o", "APT::Sandbox::User=root"]);
    }
    let mut list = args.clone();
    list.push("--print-uris");
    list.extend(PACKAGES);
    list.push(&kernel);
    let text = output("apt-get", &list, dir)
        .context("apt cannot find the test bed's packages (this bed needs Debian 12)")?;
    let missing: Vec<Deb> = text.lines().filter_map(|line| parse_uri(line, dir)).collect();

    // apt names only the files that are not there yet.
    let have = |deb: &Deb| fs::metadata(&deb.path).map_or(0, |meta| meta.len());
    if !missing.is_empty() {
        args.extend(missing.iter().map(|deb| deb.package.as_str()));
        let bar = bar(missing.iter().map(|deb| deb.size).sum(), "downloading Xen", "{bytes}/{total_bytes}");
        let mut apt = Command::new("apt-get")
            .args(&args)
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
    if files.len() != PACKAGES.len() + 1 {
        // Packages of an older run that was interrupted, in other versions.
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        bail!("{} packages are there instead of {}: run this again", files.len(), PACKAGES.len() + 1);
    }
    Ok(files)
}

fn bar(length: u64, what: &'static str, unit: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!("{{msg}} {{bar:40}} {unit}"))
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style).with_message(what)
}

fn unpack(files: &[PathBuf], root: &Path) -> Result<()> {
    let bar = bar(files.len() as u64, "unpacking Xen", "{pos}/{len}");
    fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
    for file in files {
        output("dpkg", &[OsStr::new("-x"), file.as_os_str(), root.as_os_str()], root)
            .with_context(|| format!("cannot unpack {}", file.display()))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Puts the hypervisor and dom0's kernel where QEMU finds them under names without versions.
fn place_kernels(dir: &Path, root: &Path) -> Result<()> {
    let boot = root.join("boot");
    let xen = boot.join("xen-4.17-amd64.gz");
    let packed = File::open(&xen).with_context(|| format!("cannot open {}", xen.display()))?;
    let target = dir.join(Bed::XEN);
    let mut plain = File::create(&target).with_context(|| format!("cannot create {}", target.display()))?;
    std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut plain)
        .with_context(|| format!("cannot unpack {}", xen.display()))?;

    let kernel = fs::read_dir(&boot)
        .with_context(|| format!("cannot list {}", boot.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .with_context(|| format!("no kernel in {}", boot.display()))?;
    // Xen would take seconds to do this in an emulated machine.
    let image = fs::read(&kernel).with_context(|| format!("cannot read {}", kernel.display()))?;
    let packed = payload(&image).with_context(|| format!("{} is not a bzImage", kernel.display()))?;
    let part = dir.join("vmlinux.xz");
    fs::write(&part, packed).with_context(|| format!("cannot write {}", part.display()))?;
    run_inside(root, "usr/bin/xz", &["-d", "-f", "vmlinux.xz"], dir)
        .with_context(|| format!("cannot unpack the kernel in {}", kernel.display()))?;
    Ok(())
}

/// The compressed ELF in a bzImage, by the fields of Linux's boot protocol.
fn payload(image: &[u8]) -> Option<&[u8]> {
    const SECTOR: usize = 512;
    /// The size of the unpacked kernel, which follows the compressed bytes and is counted with them.
    const TRAILER: usize = 4;
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup = usize::from(*image.get(0x1f1)?);
    let start = (setup + 1) * SECTOR + word(0x248)?;
    image.get(start..)?.get(..word(0x24c)?.checked_sub(TRAILER)?)
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
