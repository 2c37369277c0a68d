//! dom0's initramfs: the toolstack, its backends' modules and scripts, and a shell, in a compressed cpio archive.

use crate::deb::{Bed, Lock};
use crate::platform::Platform;
use crate::{libraries, modules};
use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::path::Path;

const INIT: &str = include_str!("init.sh");
const SERVE: &str = include_str!("serve.sh");

/// The folder of Xen's own programs; `VERSION` is Xen's.
const XEN_PROGRAMS: &str = "usr/lib/xen-VERSION/bin";

/// Folders whose programs are taken, and which of them.
const PROGRAMS: &[(&str, &[&str])] = &[
    (
        XEN_PROGRAMS,
        &[
            "xl",
            "xenstored",
            "oxenstored",
            "xenconsoled",
            "xen-init-dom0",
            "xenconsole",
            "libxl-save-helper",
            "xenctx",
            "xen-diag",
            "xenstore-control",
        ],
    ),
    (
        "usr/bin",
        &[
            "xenstore-ls",
            "xenstore-read",
            "xenstore-write",
            "xenstore-rm",
            "xenstore-list",
            "xenstore-exists",
            "xenstore-chmod",
            "xenstore-watch",
            "env",
            "flock",
            "stat",
            "tail",
        ],
    ),
    ("bin", &["bash", "busybox", "ip", "readlink"]),
    ("sbin", &["brctl", "bridge", "ethtool", "losetup", "tc"]),
];

/// Loaded by the C library at run time, so that no program names them.
const EXTRA_LIBS: &[&str] = &["libgcc_s.so.1"];

/// Folders that the toolstack expects to find.
const FOLDERS: &[&str] = &[
    "dev",
    "proc",
    "sys",
    "run",
    "tmp",
    "root",
    "etc",
    "bed",
    "var/log/xen",
    "var/lib/xen/dump",
    "var/lib/xenstored",
];

/// Both spellings of a folder lead to the same place, as on Debian.
const LINKS: &[(&str, &str)] = &[
    ("bin", "usr/bin"),
    ("sbin", "usr/sbin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("var/run", "/run"),
    ("var/lock", "/run/lock"),
    ("usr/bin/sh", "bash"),
    ("usr/sbin/xl", "../lib/xen/bin/xl"),
    ("etc/mtab", "/proc/mounts"),
];

pub(crate) enum Node {
    Folder,
    Link(String),
    File { mode: u32, bytes: Vec<u8> },
}

/// The archive's content, by path. A sorted map, so that the same input gives the same archive.
#[derive(Default)]
pub(crate) struct Tree(BTreeMap<String, Node>);

impl Tree {
    pub(crate) fn add(&mut self, path: &str, node: Node) {
        let path = merged(path);
        let mut at = 0;
        while let Some(slash) = path.get(at..).and_then(|rest| rest.find('/')) {
            at += slash;
            self.0.entry(path[..at].to_owned()).or_insert(Node::Folder);
            at += 1;
        }
        self.0.insert(path, node);
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) {
        self.add(path, Node::File { mode, bytes: bytes.into() });
    }

    fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (path, node) in &self.0 {
            path.hash(&mut hasher);
            match node {
                Node::Folder => 0.hash(&mut hasher),
                Node::Link(target) => target.hash(&mut hasher),
                Node::File { mode, bytes } => (mode, bytes).hash(&mut hasher),
            }
        }
        hasher.finish()
    }

    pub(crate) fn write(self, out: impl Write) -> Result<()> {
        let mut out = GzEncoder::new(out, Compression::fast());
        for (number, (path, node)) in self.0.into_iter().enumerate() {
            let (kind, mode, bytes) = match node {
                Node::Folder => (ModeFileType::Directory, 0o755, Vec::new()),
                Node::Link(target) => (ModeFileType::Symlink, 0o777, target.into_bytes()),
                Node::File { mode, bytes } => (ModeFileType::Regular, mode, bytes),
            };
            let number = u32::try_from(number).context("too many files")?;
            let size = u32::try_from(bytes.len()).with_context(|| format!("{path} is too large"))?;
            let header = Builder::new(&path).ino(number).mode(mode).set_mode_file_type(kind);
            let mut entry = header.write(out, size);
            entry.write_all(&bytes)?;
            out = entry.finish()?;
        }
        trailer(out)?.finish()?;
        Ok(())
    }
}

/// A path's place in a tree where `/bin`, `/sbin` and `/lib` are links into `/usr`.
fn merged(path: &str) -> String {
    let first = path.split('/').next().unwrap_or_default();
    if path != first && matches!(first, "bin" | "sbin" | "lib" | "lib64") {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

/// Makes sure that the archive is there, and returns its name in the bed's folder. The caller holds the lock.
pub fn ensure(_lock: &Lock, bed: &Bed) -> Result<String> {
    // The packages, the two scripts and this code make the archive, so they can stand for its content.
    let mut hasher = DefaultHasher::new();
    let key = bed.dir.join("initramfs.key");
    let stamp = fs::read_to_string(bed.root.join("stamp")).unwrap_or_default();
    (INIT, SERVE, &stamp, bed.platform.xl, modules::WANTED, include_str!("initramfs.rs")).hash(&mut hasher);
    let wanted = format!("{:016x}", hasher.finish());
    let known = fs::read_to_string(&key).unwrap_or_default();
    let name = known.trim().split_once(' ').filter(|(found, _)| *found == wanted).map(|(_, name)| name);
    if let Some(name) = name.filter(|name| bed.dir.join(name).is_file()) {
        return Ok(name.to_owned());
    }

    let tree = collect(bed).context("cannot build dom0's initramfs")?;
    let name = format!("initramfs-{:016x}.gz", tree.hash());
    if !bed.dir.join(&name).is_file() {
        remove_old(&bed.dir);
        let part = bed.dir.join("initramfs.part");
        let file = fs::File::create(&part).with_context(|| format!("cannot create {}", part.display()))?;
        tree.write(std::io::BufWriter::new(file))
            .with_context(|| format!("cannot write {}", part.display()))?;
        fs::rename(&part, bed.dir.join(&name))
            .with_context(|| format!("cannot rename {}", part.display()))?;
    }
    fs::write(&key, format!("{wanted} {name}\n"))
        .with_context(|| format!("cannot write {}", key.display()))?;
    Ok(name)
}

/// A machine that runs has read its archive already, so older ones can go.
fn remove_old(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("initramfs-") {
            // A file that stays costs only its space.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn collect(bed: &Bed) -> Result<Tree> {
    let Bed { platform, root, .. } = bed;
    let mut tree = Tree::default();
    for folder in FOLDERS {
        tree.add(folder, Node::Folder);
    }
    for (path, target) in LINKS {
        tree.add(path, Node::Link((*target).to_owned()));
    }
    tree.add("usr/lib/xen", Node::Link(format!("xen-{}", platform.xen)));
    tree.file("init", 0o755, INIT);
    tree.file("bed/serve", 0o755, SERVE);
    tree.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/bash\n");
    tree.file("etc/group", 0o644, "root:x:0:\n");
    tree.file("etc/hosts", 0o644, "127.0.0.1 localhost\n10.0.0.1 dom0\n");
    programs(&mut tree, platform, root)?;
    configuration(&mut tree, platform, root)?;
    kernel_modules(&mut tree, root)?;
    Ok(tree)
}

fn programs(tree: &mut Tree, platform: &Platform, root: &Path) -> Result<()> {
    let mut elfs = Vec::new();
    for (folder, names) in PROGRAMS.iter().copied().chain([(XEN_PROGRAMS, platform.programs)]) {
        let folder = folder.replace("VERSION", platform.xen);
        for name in names {
            let path = format!("{folder}/{name}");
            let bytes = match fs::read(root.join(&path)) {
                Ok(bytes) => bytes,
                Err(error) => {
                    return Err(error).with_context(|| format!("no program {path} in the packages"));
                }
            };
            tree.file(&path, 0o755, bytes);
            elfs.push(path);
        }
    }
    for library in EXTRA_LIBS {
        let path = format!("lib/{}/{library}", platform.libraries);
        tree.file(&path, 0o755, read(&root.join(&path))?);
    }
    loader(tree, platform, root)?;
    elfs.iter().try_for_each(|path| add_libraries(tree, platform, root, path))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Adds the program that loads programs and their libraries.
pub(crate) fn loader(tree: &mut Tree, platform: &Platform, root: &Path) -> Result<()> {
    let loader = &platform.loader;
    tree.file(loader.file, 0o755, read(&root.join(loader.file))?);
    let (link, target) = loader.link;
    tree.add(link, Node::Link(target.to_owned()));
    Ok(())
}

/// Adds the shared libraries of a program.
pub(crate) fn add_libraries(tree: &mut Tree, platform: &Platform, root: &Path, program: &str) -> Result<()> {
    for library in libraries::of(root, platform.libraries, program)? {
        if !tree.has(&merged(&library)) {
            tree.file(&library, 0o755, read(&root.join(&library))?);
        }
    }
    Ok(())
}

/// Xen's configuration files and the scripts that plug devices.
fn configuration(tree: &mut Tree, platform: &Platform, root: &Path) -> Result<()> {
    let scripts = root.join("etc/xen/scripts");
    for entry in fs::read_dir(&scripts).with_context(|| format!("cannot list {}", scripts.display()))? {
        let path = entry?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            tree.file(&format!("etc/xen/scripts/{}", name.to_string_lossy()), 0o755, read(&path)?);
        }
    }
    for (name, more) in [("etc/xen/xl.conf", platform.xl), ("etc/xen/oxenstored.conf", "")] {
        let mut text = read(&root.join(name))?;
        text.extend_from_slice(more.as_bytes());
        tree.file(name, 0o644, text);
    }
    Ok(())
}

fn kernel_modules(tree: &mut Tree, root: &Path) -> Result<()> {
    let folder = modules::folder(root)?;
    let list = modules::list(root, &folder, modules::WANTED)?;
    let place = |path: &Path| path.display().to_string();
    let mut order = String::new();
    let mut dependencies = String::new();
    for module in &list {
        tree.file(&place(&module.path), 0o644, read(&root.join(&module.path))?);
        order += &format!("/{}\n", place(&module.path));
        let needs: Vec<String> = module
            .needs
            .iter()
            .filter_map(|&need| Some(format!(" /{}", place(&list.get(need)?.path))))
            .collect();
        dependencies += &format!("/{}:{}\n", place(&module.path), needs.concat());
    }
    tree.file("etc/modules.bed", 0o644, order);
    let dep = folder.join("modules.dep");
    tree.file(&place(dep.strip_prefix(root).unwrap_or(&dep)), 0o644, dependencies);
    Ok(())
}
