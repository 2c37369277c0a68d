//! `cargo xtask abi`: the SDK's wire types and constants against Xen's own headers.
//!
//! The check itself is the package `abi-check`. It needs Xen's headers and libclang; where this machine has none, Debian's
//! packages are unpacked below `target/abi`, without installing anything, as the test bed does with Xen.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::deb;
use crate::image::{cargo, workspace};

/// Xen's headers, libclang, and what libclang loads beside the C library.
const PACKAGES: &[&str] = &[
    "libxen-dev",
    "libclang1-14",
    "libllvm14",
    "libbsd0",
    "libedit2",
    "libffi8",
    "libicu72",
    "liblzma5",
    "libmd0",
    "libtinfo6",
    "libxml2",
    "libz3-4",
    "zlib1g",
];

const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

/// What `abi-check` exits with when headers or libclang are missing.
const UNCHECKED: i32 = 2;

/// Compare the wire types and constants with Xen's public headers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Take the headers and libclang of Debian's packages even where this machine has its own
    #[arg(long)]
    fetch: bool,
}

/// `cargo xtask abi`.
pub fn run(args: &Args) -> Result<ExitCode> {
    Ok(if check(args.fetch)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds and runs the check, which prints its report; false when something disagrees.
pub fn check(fetch: bool) -> Result<bool> {
    if !fetch {
        match start(&[])? {
            Some(UNCHECKED) => eprintln!("taking Debian's packages instead"),
            code => return Ok(code == Some(0)),
        }
    }
    let root = fetched()?;
    // Headers and a libclang that the caller names stand.
    let named = |name: &str| name != LIBRARY_PATH && std::env::var_os(name).is_some();
    let set: Vec<_> = environment(&root)?.into_iter().filter(|(name, _)| !named(name)).collect();
    match start(&set)? {
        Some(UNCHECKED) => bail!("the interface could not be checked, see above"),
        code => Ok(code == Some(0)),
    }
}

/// The folder of Xen's public headers: the caller's, this machine's, or that of Debian's package.
pub(crate) fn headers() -> Result<PathBuf> {
    const INSTALLED: &str = "/usr/include";
    match std::env::var_os("XEN_INCLUDE_DIR") {
        Some(named) => Ok(named.into()),
        None if Path::new(INSTALLED).join("xen/xen.h").is_file() => Ok(INSTALLED.into()),
        None => Ok(fetched()?.join("usr/include")),
    }
}

fn start(environment: &[(&str, OsString)]) -> Result<Option<i32>> {
    let mut cargo = cargo();
    cargo.args(["run", "--quiet", "--package", "abi-check"]);
    cargo.envs(environment.iter().map(|(name, value)| (name, value)));
    Ok(cargo.status().context("cannot run cargo")?.code())
}

/// What makes the build script find headers and libclang below `root`.
fn environment(root: &Path) -> Result<[(&'static str, OsString); 3]> {
    let libraries = fs::read_dir(root.join("usr/lib"))
        .context("the unpacked packages hold no libraries")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().ends_with("-linux-gnu"))
        .context("the unpacked packages hold no libraries of this architecture")?;
    let other = root.join("lib").join(libraries.file_name().unwrap_or_default());
    let before = std::env::var_os(LIBRARY_PATH).unwrap_or_default();
    let search = [libraries, other].into_iter().chain(std::env::split_paths(&before));
    let search = std::env::join_paths(search).context("a colon in the name of a folder of libraries")?;
    Ok([
        ("XEN_INCLUDE_DIR", root.join("usr/include").into()),
        ("LIBCLANG_PATH", root.join("usr/lib/llvm-14/lib").into()),
        (LIBRARY_PATH, search),
    ])
}

/// The folder of the unpacked packages, filled if it is not yet.
fn fetched() -> Result<PathBuf> {
    let dir = workspace().join("target/abi");
    let _lock = deb::lock(&dir)?;
    let dir = dir.canonicalize().with_context(|| format!("cannot open {}", dir.display()))?;
    let (root, stamp) = (dir.join("root"), dir.join("stamp"));
    let wanted = format!("{}\n", PACKAGES.join(" "));
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(root);
    }
    eprintln!("downloading Xen's headers and libclang, 60 MB");
    let debs = dir.join("debs");
    for old in [&root, &debs] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
        fs::create_dir_all(old).with_context(|| format!("cannot create {}", old.display()))?;
    }
    let mut args = vec!["download", "-q"];
    if deb::is_root() {
        // apt's own user may not write in a build folder.
        args.extend(["-o", "APT::Sandbox::User=root"]);
    }
    args.extend(PACKAGES);
    deb::output("apt-get", &args, &debs)
        .context("apt cannot fetch Xen's headers and libclang: run apt-get update (this needs Debian 12)")?;
    for file in fs::read_dir(&debs).with_context(|| format!("cannot list {}", debs.display()))? {
        let file = file.context("cannot list the packages")?.path();
        deb::output("dpkg", &[Path::new("-x"), &file, &root], &dir)
            .with_context(|| format!("cannot unpack {}", file.display()))?;
    }
    fs::remove_dir_all(&debs).with_context(|| format!("cannot remove {}", debs.display()))?;
    // Last, so that an interrupted run never looks complete.
    fs::write(&stamp, wanted).context("cannot write the stamp of the unpacked packages")?;
    Ok(root)
}
