//! For build scripts (feature `build`): how an image is linked.
//!
//! ```no_run
//! // build.rs
//! fn main() {
//!     xen_rt::build::image();
//! }
//! ```

#![allow(clippy::needless_doctest_main, reason = "a build script has one")]

use std::path::Path;
use std::string::String;
use std::vec::Vec;
use std::{env, format, fs, println};

/// An architecture's own.
struct Arch {
    name: &'static str,
    /// Where things stand in an image.
    script: &'static str,
    /// For the linker of a bare-metal target: whether the image stays where it is linked to.
    place: &'static [&'static str],
}

const ARCHES: [Arch; 2] = [
    Arch {
        name: "aarch64",
        script: include_str!("arch/aarch64/link.ld"),
        place: &["--pie", "--no-dynamic-linker", "-z", "notext", "--pack-dyn-relocs=relr"],
    },
    Arch { name: "x86_64", script: include_str!("arch/x86_64/link.ld"), place: &["--no-pie"] },
];

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
    let name = variable("CARGO_CFG_TARGET_ARCH");
    let Some(arch) = ARCHES.iter().find(|arch| arch.name == name) else {
        panic!("xen-rt has no entry for {name}");
    };
    let script = Path::new(&variable("OUT_DIR")).join("xen-rt.ld");
    fs::write(&script, arch.script)
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", script.display()));
    // A bare-metal target calls the linker itself, a hosted one the C compiler.
    let bare = variable("CARGO_CFG_TARGET_OS") == "none";
    for argument in arguments(arch, &script.to_string_lossy(), bare) {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}

fn arguments(arch: &Arch, script: &str, bare: bool) -> Vec<String> {
    let linker = ["-T", script, "--build-id=none", "--nmagic", "-z", "noexecstack"];
    if bare {
        return arch.place.iter().copied().chain(linker).map(String::from).collect();
    }
    let compiler = ["-nostartfiles", "-nostdlib", "-static", "-no-pie"].map(String::from);
    compiler.into_iter().chain([format!("-Wl,{}", linker.join(","))]).collect()
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts, which this is for"))
}
