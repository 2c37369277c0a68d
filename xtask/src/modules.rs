//! Finds the kernel modules that dom0 loads, with those they depend on, in the order of loading.
//!
//! Each module names its dependencies in its own `depends=` string, so no `depmod` has to run here.

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What a dom0 of the bed loads: Xen's interfaces and backends, a bridge, QEMU's network card and drive,
/// disks with bad sectors and a network that loses packets when a test asks for them.
pub const WANTED: &[&str] = &[
    "xenfs",
    "xen-privcmd",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-netback",
    "xen-blkback",
    "bridge",
    "loop",
    "null_blk",
    "tun",
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "sch_netem",
];

/// A module and the modules that have to be there before it.
#[derive(Debug)]
pub struct Module {
    /// Its path below the root folder.
    pub path: PathBuf,
    /// Positions, in the same list, of the modules it needs.
    pub needs: Vec<usize>,
}

/// The one folder `lib/modules/VERSION` below `root`.
pub fn folder(root: &Path) -> Result<PathBuf> {
    let parent = root.join("lib/modules");
    fs::read_dir(&parent)
        .with_context(|| format!("cannot list {}", parent.display()))?
        .find_map(|entry| Some(entry.ok()?.path()))
        .with_context(|| format!("no kernel modules in {}", parent.display()))
}

/// Lists the wanted modules of `folder`, each after all that it needs.
pub fn list(root: &Path, folder: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut found = HashMap::new();
    walk(&folder.join("kernel"), &mut found)?;
    let mut search = Search { root, found, done: HashMap::new(), list: Vec::new() };
    for name in wanted {
        search.add(&canonical(name)).with_context(|| format!("module {name}"))?;
    }
    Ok(search.list)
}

struct Search<'a> {
    root: &'a Path,
    found: HashMap<String, PathBuf>,
    done: HashMap<String, usize>,
    list: Vec<Module>,
}

impl Search<'_> {
    fn add(&mut self, name: &str) -> Result<usize> {
        if let Some(&position) = self.done.get(name) {
            return Ok(position);
        }
        let path =
            self.found.get(name).with_context(|| format!("the kernel package has no module {name}"))?.clone();
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut needs = Vec::new();
        for name in depends(&bytes) {
            needs.push(self.add(&canonical(&name))?);
        }
        let path = path.strip_prefix(self.root).unwrap_or(&path).to_owned();
        self.list.push(Module { path, needs });
        let position = self.list.len() - 1;
        self.done.insert(name.to_owned(), position);
        Ok(position)
    }
}

/// The kernel takes `-` and `_` in a module's name for the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn walk(dir: &Path, found: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        if path.is_dir() {
            walk(&path, found)?;
        } else if let (true, Some(stem)) = (path.extension().is_some_and(|end| end == "ko"), path.file_stem())
        {
            found.insert(canonical(&stem.to_string_lossy()), path);
        }
    }
    Ok(())
}

/// The names in a module's `depends=` string.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let text =
        module.iter().skip(start + KEY.len()).take_while(|&&byte| byte != 0).copied().collect::<Vec<u8>>();
    String::from_utf8_lossy(&text).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_are_split_and_may_be_empty() {
        assert_eq!(depends(b"x\0depends=a,b-c\0rest"), ["a", "b-c"]);
        assert!(depends(b"x\0depends=\0rest").is_empty());
        assert!(depends(b"no such string").is_empty());
    }
}
