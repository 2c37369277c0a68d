//! Where the headers and libclang are.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder to give the compiler: `xen/xen.h` is in it.
pub(crate) fn headers() -> Result<PathBuf, String> {
    if let Some(given) = env::var_os("XEN_INCLUDE_DIR") {
        let given = PathBuf::from(given);
        return folder(&given).ok_or_else(|| {
            format!("XEN_INCLUDE_DIR is {}, and neither xen.h nor xen/xen.h is there", given.display())
        });
    }
    let candidates = pkg_config().into_iter().chain([PathBuf::from("/usr/include")]);
    candidates.into_iter().find_map(|path| folder(&path)).ok_or_else(|| {
        "Xen's public headers are not installed: install Debian's libxen-dev, or set XEN_INCLUDE_DIR to the folder that \
         holds xen/xen.h, or run `cargo xtask abi`, which fetches them"
            .to_owned()
    })
}

/// Takes the folder itself or the `xen` in it.
fn folder(path: &Path) -> Option<PathBuf> {
    if path.join("xen/xen.h").is_file() {
        return Some(path.to_owned());
    }
    let named_xen = path.file_name().is_some_and(|name| name == "xen");
    path.parent().filter(|_| named_xen && path.join("xen.h").is_file()).map(Path::to_owned)
}

fn pkg_config() -> Option<PathBuf> {
    let output = Command::new("pkg-config").args(["--variable=includedir", "xencontrol"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(text.trim())).filter(|path| output.status.success() && path.is_absolute())
}

/// Loads libclang, as bindgen will.
pub(crate) fn libclang() -> Result<(), String> {
    clang_sys::load().map_err(|error| {
        format!(
            "libclang cannot be loaded ({error}): install Debian's libclang-14-dev, or set LIBCLANG_PATH to the folder \
             that holds libclang.so, or run `cargo xtask abi`, which fetches it"
        )
    })
}
