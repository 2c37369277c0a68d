//! A compiler for machines without an operating system. The machine's own serves where it has a core for the target; Debian's
//! can build one from source, and is unpacked below `target/bed` where it is not installed.

use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{apt, deb, image};

/// The compiler, and the source of its core. Debian's ordinary compiler is older than what the libraries need.
const PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];
/// Where the installed packages are.
const SYSTEM: &str = "/usr";
/// Where the packages keep the source, of which only the libraries are used.
const SOURCE: [&str; 2] = ["./usr/lib/rustlib/src", "./usr/src/*/library"];
/// Changes whenever the folder's layout does.
const LAYOUT: &str = "1";

/// A compiler that builds for a target.
#[derive(Debug, Clone)]
pub(crate) enum Toolchain {
    /// The one that runs this.
    Own,
    /// Debian's.
    Debian {
        /// The compiler.
        rustc: PathBuf,
        /// The linker, where it is not the one that the target names.
        linker: Option<PathBuf>,
    },
}

impl Toolchain {
    /// Finds a compiler for a bare-metal target, and fetches one if this machine has none.
    pub(crate) fn bare(target: &str) -> Result<Self> {
        if has_core(target) {
            return Ok(Self::Own);
        }
        let (rustc, source) =
            (Path::new(SYSTEM).join("bin/rustc"), Path::new(SYSTEM).join("lib/rustlib/src"));
        if rustc.is_file() && source.join("rust/library").is_dir() {
            let linker = deb::which("rust-lld");
            return Ok(Self::Debian { rustc, linker });
        }
        let dir = deb::dir();
        let lock = deb::lock(&dir)?;
        let root = fetch(&lock, &dir).with_context(|| {
            format!(
                "no compiler for {target}: rustup target add {target}, or apt-get install {}",
                PACKAGES.join(" ")
            )
        })?;
        Ok(Self::Debian { rustc: root.join("rustc"), linker: Some(root.join("ld.lld")) })
    }

    /// Cargo with this compiler, the named command and the flags for the target, in the workspace. Its products go to [`dir`].
    pub(crate) fn cargo(&self, command: &str, target: &str) -> Command {
        let mut cargo = image::cargo();
        cargo.arg(command);
        self.choose(&mut cargo, target);
        cargo.arg("--target-dir").arg(dir());
        cargo
    }

    /// Has a cargo that builds use this compiler for the target.
    pub(crate) fn choose(&self, cargo: &mut Command, target: &str) {
        if let Self::Debian { rustc, linker } = self {
            // A name of another toolchain would lead rustup's cargo to that one.
            for name in ["RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER"] {
                cargo.env_remove(name);
            }
            cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=core,alloc");
            if let Some(linker) = linker {
                let variable = target.to_uppercase().replace('-', "_");
                cargo.env(format!("CARGO_TARGET_{variable}_LINKER"), linker);
            }
        }
        cargo.args(["--target", target]);
    }
}

/// Where cargo puts what it builds for bare metal: in a folder of its own, for another compiler may have built it.
pub(crate) fn dir() -> PathBuf {
    image::workspace().join("target/bare")
}

fn has_core(target: &str) -> bool {
    let dir = Command::new("rustc").args(["--print", "target-libdir", "--target", target]).output();
    dir.is_ok_and(|out| Path::new(String::from_utf8_lossy(&out.stdout).trim()).is_dir())
}

/// Downloads and unpacks the compiler, with those of its libraries that this machine lacks, and a linker of the same LLVM.
fn fetch(_lock: &deb::Lock, dir: &Path) -> Result<PathBuf> {
    let dir = dir.canonicalize().with_context(|| format!("cannot open {}", dir.display()))?;
    let root = dir.join("rust");
    let wanted = format!("{LAYOUT} {}\n", PACKAGES.join(" "));
    if fs::read_to_string(root.join("stamp")).is_ok_and(|found| found == wanted) {
        return Ok(root);
    }
    // Unpacked next to its place, so that an interrupted run never looks complete.
    let (fresh, packages) = (dir.join("rust.new"), dir.join("rust.debs"));
    for old in [&fresh, &packages, &root] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    for new in [&fresh, &packages] {
        fs::create_dir_all(new).with_context(|| format!("cannot create {}", new.display()))?;
    }
    eprintln!("fetching a compiler for bare metal, once: 140 MB");
    for file in apt::with_libraries(&PACKAGES, &packages)? {
        unpack(&file, &fresh)?;
    }
    write_program(&fresh.join("rustc"), &root, "usr/bin/rustc")?;
    let llvm = llvm_of(&fresh)?;
    let linker = format!("lld-{llvm}");
    for file in apt::with_libraries(&[&linker], &packages)? {
        unpack(&file, &fresh)?;
    }
    write_program(&fresh.join("ld.lld"), &root, &format!("usr/lib/llvm-{llvm}/bin/ld.lld"))?;
    fs::remove_dir_all(&packages).with_context(|| format!("cannot remove {}", packages.display()))?;
    fs::write(fresh.join("stamp"), wanted).context("cannot write the stamp of the unpacked compiler")?;
    fs::rename(&fresh, &root).with_context(|| format!("cannot rename {}", fresh.display()))?;
    Ok(root)
}

/// Unpacks a package, of one of source only the libraries, a sixth of it, and removes its file.
fn unpack(file: &Path, root: &Path) -> Result<()> {
    let name = file.display().to_string();
    if !name.contains("-src_") {
        deb::output("dpkg", &["-x", &name, &root.display().to_string()], root)?;
        return fs::remove_file(file).with_context(|| format!("cannot remove {name}"));
    }
    let script = format!(
        "dpkg --fsys-tarfile '{name}' | tar -x --wildcards {}",
        SOURCE.map(|part| format!("'{part}'")).join(" ")
    );
    deb::output("bash", &["-c", &format!("set -o pipefail; {script}")], root)?;
    fs::remove_file(file).with_context(|| format!("cannot remove {name}"))
}

/// Makes a program that runs one of the unpacked ones with the unpacked libraries.
fn write_program(file: &Path, root: &Path, program: &str) -> Result<()> {
    let (libraries, program) = (root.join("usr/lib/x86_64-linux-gnu"), root.join(program));
    let script =
        format!("#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' \"$@\"\n", libraries.display(), program.display());
    fs::write(file, script).with_context(|| format!("cannot write {}", file.display()))?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", file.display()))
}

/// The major version of the compiler's LLVM.
fn llvm_of(root: &Path) -> Result<String> {
    let output = Command::new(root.join("usr/bin/rustc"))
        .env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"))
        .arg("-vV")
        .output()
        .context("cannot run the unpacked compiler")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    match version.and_then(|version| version.split('.').next()) {
        Some(major) => Ok(major.to_owned()),
        None => {
            bail!("the unpacked compiler does not run: {}", String::from_utf8_lossy(&output.stderr).trim())
        }
    }
}
