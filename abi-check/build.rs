//! Reads Xen's public headers, as each architecture's guests see them, and writes what they define as a table in Rust.
//!
//! Headers or libclang may be missing: the table then holds the reason, and the check reports it. Nothing else of the
//! workspace is built from headers.

#[path = "build/emit.rs"]
mod emit;
#[path = "build/find.rs"]
mod find;
#[path = "build/scan.rs"]
mod scan;
#[path = "build/wrap.rs"]
mod wrap;

use std::path::{Path, PathBuf};
use std::{env, fs};

/// The headers to cover, below `xen/`, and whether they are for guests on x86 alone.
const HEADERS: &[(&str, bool)] = &[
    ("xen-compat.h", false),
    ("xen.h", false),
    ("arch-x86/xen.h", true),
    ("arch-x86/xen-x86_64.h", true),
    ("arch-x86/cpuid.h", true),
    ("arch-x86/hvm/start_info.h", true),
    ("arch-arm.h", false),
    ("sched.h", false),
    ("vcpu.h", false),
    ("version.h", false),
    ("memory.h", false),
    ("event_channel.h", false),
    ("grant_table.h", false),
    ("callback.h", false),
    ("features.h", false),
    ("elfnote.h", false),
    ("errno.h", false),
    ("hvm/hvm_op.h", false),
    ("hvm/hvm_vcpu.h", false),
    ("hvm/params.h", false),
    ("physdev.h", false),
    ("nmi.h", false),
    ("io/ring.h", false),
    ("io/netif.h", false),
    ("io/blkif.h", false),
    ("io/console.h", false),
    ("io/xenbus.h", false),
    ("io/xs_wire.h", false),
    ("io/protocols.h", false),
];

/// The architectures whose layouts are read, and how clang calls them.
const ARCHES: [(&str, &str); 2] =
    [("x86_64", "x86_64-unknown-linux-gnu"), ("aarch64", "aarch64-unknown-linux-gnu")];

fn main() {
    for file in ["build.rs", "build"] {
        println!("cargo:rerun-if-changed={file}");
    }
    for variable in ["XEN_INCLUDE_DIR", "LIBCLANG_PATH", "LD_LIBRARY_PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let table = match table(&out) {
        Ok(table) => table,
        Err(reason) => {
            // What is missing now may be there next time: a file that never is makes cargo ask again.
            println!("cargo:rerun-if-changed={}", out.join("absent").display());
            emit::absent(&reason)
        }
    };
    fs::write(out.join("headers.rs"), table).expect("cargo made OUT_DIR");
}

fn table(out: &Path) -> Result<String, String> {
    let include = find::headers()?;
    find::libclang()?;
    let names: Vec<&str> = HEADERS.iter().map(|(name, _)| *name).collect();
    let text = scan::Text::read(&include, &names)?;
    let mut modules = String::new();
    for (arch, target) in ARCHES {
        let wanted = HEADERS.iter().filter(|(_, x86)| arch == "x86_64" || !x86);
        // The other architecture's own header is reached by none of the others, and does not compile.
        let wanted = wanted.map(|(name, _)| *name).filter(|name| arch == "aarch64" || *name != "arch-arm.h");
        let wanted: Vec<&str> = wanted.collect();
        let found = wrap::read(out, &include, arch, target, &wanted, &text)?;
        modules.push_str(&emit::module(arch, &found, &text)?);
    }
    Ok(emit::present(&include, ARCHES.map(|(arch, _)| arch).as_slice(), &modules))
}
