//! The Linux guest that the unikernel is compared with: dom0's own kernel, Xen's frontends as modules, busybox and nginx.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::deb;
use crate::image;
use crate::initramfs::{self, Node, Tree};
use crate::modules;
use crate::platform::{Arch, Platform};

/// nginx and what it loads, and the shell that starts it.
const PACKAGES: &[&str] =
    &["busybox-static", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "nginx", "zlib1g"];
/// The frontends, and the file system of the unikernel's disk.
const MODULES: &[&str] = &["xen-netfront", "xen-blkfront", "vfat", "nls_cp437", "nls_ascii", "nls_utf8"];

/// What the guest boots from.
#[derive(Debug)]
pub(super) struct Peer {
    /// The kernel, unpacked, so that neither toolstack nor guest has to do that.
    pub(super) kernel: PathBuf,
    /// The same as a distribution delivers it.
    pub(super) packed: PathBuf,
    /// Its programs and modules.
    pub(super) initramfs: PathBuf,
}

/// Fetches and packs it, with the taker of bytes `load` in it.
pub(super) fn build(load: &Path) -> Result<Peer> {
    let (lock, bed) = deb::ensure(Arch::X86_64.platform())?;
    let root = deb::extra(&lock, &bed, "linux", PACKAGES)?;
    let mut tree = Tree::default();
    tree.file("init", 0o755, include_str!("peer.sh"));
    tree.file("nginx.conf", 0o644, include_str!("peer.conf"));
    tree.file("load", 0o755, initramfs::read(load)?);
    tree.file("etc/passwd", 0o644, "root:x:0:0:root:/:/bin/sh\n");
    tree.file("etc/group", 0o644, "root:x:0:\n");
    for (path, target) in [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        tree.add(path, Node::Link(target.to_owned()));
    }
    tree.file("bin/busybox", 0o755, initramfs::read(&root.join("bin/busybox"))?);
    tree.file("usr/sbin/nginx", 0o755, initramfs::read(&root.join("usr/sbin/nginx"))?);
    initramfs::loader(&mut tree, bed.platform, &root)?;
    initramfs::add_libraries(&mut tree, bed.platform, &root, "usr/sbin/nginx")?;
    let folder = modules::folder(&bed.root)?;
    let mut order = String::new();
    for module in modules::list(&bed.root, &folder, MODULES)? {
        let name = module.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        tree.file(&format!("modules.d/{name}"), 0o644, initramfs::read(&bed.root.join(&module.path))?);
        order += &format!("/modules.d/{name}\n");
    }
    tree.file("modules", 0o644, order);
    let path = image::out_dir()?.join("peer.gz");
    let file = fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    tree.write(std::io::BufWriter::new(file))?;
    Ok(Peer { kernel: bed.dir.join(Platform::KERNEL), packed: deb::vmlinuz(&bed.root)?, initramfs: path })
}
