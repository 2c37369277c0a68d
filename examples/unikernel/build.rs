//! How the image is linked: by a script of its own, without the C library's start files.

fn main() {
    // Other kernels are linked by the same script, with this file as their own.
    let script = format!("{}/../unikernel/link.ld", env!("CARGO_MANIFEST_DIR"));
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rerun-if-env-changed=UNIKERNEL_CMDLINE");
    let linker = ["-T", &script, "--build-id=none", "--nmagic", "-z", "noexecstack"];
    // A bare-metal target calls the linker itself, a hosted one the C compiler.
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        linker.iter().for_each(|arg| println!("cargo:rustc-link-arg-bins={arg}"));
        println!("cargo:rustc-link-arg-bins=--no-pie");
    } else {
        for arg in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
            println!("cargo:rustc-link-arg-bins={arg}");
        }
        println!("cargo:rustc-link-arg-bins=-Wl,{}", linker.join(","));
    }
}
