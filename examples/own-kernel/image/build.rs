//! How the image is linked: by its own script, without the C library's start files.

fn main() {
    let script = format!("{}/link.ld", env!("CARGO_MANIFEST_DIR"));
    println!("cargo:rerun-if-changed={script}");
    let linker = ["-T", &script, "--build-id=none", "-z", "noexecstack"];
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
