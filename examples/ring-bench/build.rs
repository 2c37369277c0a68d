//! Compiles the rings of `io/ring.h` where the header and a compiler are there, and says so where they are not.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(ring_h)");
    println!("cargo::rerun-if-changed=c/rings.c");
    println!("cargo::rerun-if-env-changed=XEN_INCLUDE_DIR");
    let Some(include) = include_dir() else {
        println!(
            "cargo::warning=no xen/io/ring.h (package libxen-dev, or XEN_INCLUDE_DIR): without the comparison"
        );
        return;
    };
    let mut build = cc::Build::new();
    build.file("c/rings.c").include(&include).opt_level(2).warnings(false).cargo_metadata(true);
    match build.try_compile("rings") {
        Ok(()) => println!("cargo::rustc-cfg=ring_h"),
        Err(error) => println!("cargo::warning=without the comparison, for the C compiler fails: {error}"),
    }
}

/// The folder that has `xen/io/ring.h`.
fn include_dir() -> Option<PathBuf> {
    let named = std::env::var_os("XEN_INCLUDE_DIR").map(PathBuf::from);
    let candidates =
        named.map_or_else(|| vec![from_pkg_config(), Some("/usr/include".into())], |dir| vec![Some(dir)]);
    candidates.into_iter().flatten().find(|dir| dir.join("xen/io/ring.h").is_file())
}

fn from_pkg_config() -> Option<PathBuf> {
    let output = Command::new("pkg-config").args(["--variable=includedir", "xencontrol"]).output().ok()?;
    let dir = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| dir.trim().into())
}
