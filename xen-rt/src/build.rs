//! For build scripts (feature `build`): how an image is linked.
//!
//! ```no_run
//! // build.rs
//! fn main() {
//!     xen_rt::build::image();
//! }
//! ```

#![allow(clippy::needless_doctest_main, reason = "a build script has one")]

use std::path::{Path, PathBuf};
use std::string::{String, ToString};
use std::{env, format, fs, println};

/// Where things stand in an image, by architecture.
const SCRIPTS: [(&str, &str); 2] =
    [("aarch64", include_str!("arch/aarch64/link.ld")), ("x86_64", include_str!("arch/x86_64/link.ld"))];

/// Has the package's programs linked as images: by the architecture's link script, without the C library's start files.
///
/// A package with the feature `hosted` is a process, and is linked as one.
///
/// # Panics
/// Not called by a build script that cargo runs, or the architecture is none of this crate's.
pub fn image() {
    if env::var_os("CARGO_FEATURE_HOSTED").is_some() {
        return;
    }
    let script = script(&variable("CARGO_CFG_TARGET_ARCH"), Path::new(&variable("OUT_DIR")));
    // A bare-metal target calls the linker itself, a hosted one the C compiler.
    for argument in arguments(&script.to_string_lossy(), variable("CARGO_CFG_TARGET_OS") == "none") {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}

/// Writes the architecture's script, and returns where it is.
fn script(arch: &str, dir: &Path) -> PathBuf {
    let Some((_, script)) = SCRIPTS.iter().find(|(name, _)| *name == arch) else {
        panic!("xen-rt has no entry for {arch}");
    };
    let path = dir.join("xen-rt.ld");
    fs::write(&path, script).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    path
}

fn arguments(script: &str, bare: bool) -> impl Iterator<Item = String> {
    let linker = ["-T", script, "--build-id=none", "--nmagic", "-z", "noexecstack"].map(String::from);
    let (own, compiler): (&[&str], _) = if bare {
        (&["--no-pie"], None)
    } else {
        (&["-nostartfiles", "-nostdlib", "-static", "-no-pie"], Some(format!("-Wl,{}", linker.join(","))))
    };
    let linker = if bare { Some(linker) } else { None };
    own.iter().map(ToString::to_string).chain(linker.into_iter().flatten()).chain(compiler)
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts, which this is for"))
}
