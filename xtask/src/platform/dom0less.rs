//! Domains that Xen for arm64 builds by itself, as the device tree tells it, with no dom0 to ask.

use std::fs;

use anyhow::{Context, Result, anyhow};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use super::{Dom0less, Platform};
use crate::deb;

/// Where the domain's kernel is put. Memory begins at 1 GiB, with Xen and the device tree.
const KERNEL_AT: u32 = 0x5000_0000;
/// The memory of the domain, in MiB.
const MEMORY: u64 = 32;

/// Makes the device tree, and returns QEMU's words for it and for the kernel.
pub(super) fn words(platform: &Platform, domain: &Dom0less<'_>) -> Result<Vec<String>> {
    let Dom0less { dir, qemu, kernel, .. } = *domain;
    // Xen is told of the kernel in the tree, and QEMU has no words for that: its own tree is written down and added to.
    let (own, tree) = (format!("{kernel}.dtb.part"), format!("{kernel}.dtb"));
    let dump = format!("dumpdtb={own}");
    let quiet = ["-machine", &dump, "-display", "none", "-nodefaults"];
    deb::output(qemu, &[platform.emulator.args, &quiet].concat(), dir)
        .context("cannot write down the machine's device tree")?;
    let read = |name: &str| fs::read(dir.join(name)).with_context(|| format!("cannot read {name}"));
    let size = read(kernel)?.len();
    let bytes = with_domain(&read(&own)?, u32::try_from(size)?, domain.cmdline, domain.xen)?;
    fs::write(dir.join(&tree), bytes).with_context(|| format!("cannot write {tree}"))?;
    let load = format!("loader,file={kernel},addr={KERNEL_AT:#x},force-raw=on");
    Ok(["-dtb", &tree, "-device", &load].map(str::to_owned).into())
}

/// Adds a domain with a kernel of `size` bytes to a tree, and the command lines of the domain and of Xen.
fn with_domain(tree: &[u8], size: u32, cmdline: &str, xen: &str) -> Result<Vec<u8>> {
    let told = |error| anyhow!("cannot read the machine's device tree: {error}");
    let mut tree = DeviceTree::from_fdt(&Fdt::new(tree).map_err(told)?);
    let chosen = tree.root.child_mut("chosen").context("the machine's device tree has no /chosen")?;
    let kernel = node(&format!("module@{KERNEL_AT:x}"))?;
    let kernel = with(kernel, "compatible", ["multiboot,kernel", "multiboot,module"].as_slice())?;
    let kernel = with(kernel, "reg", [0, KERNEL_AT, 0, size])?;
    let kernel = with(kernel, "bootargs", cmdline)?;
    let domain = with(with_cells(node("domU1")?)?, "compatible", "xen,domain")?;
    // In KiB.
    let domain = with(with(domain, "memory", MEMORY << 10)?, "cpus", 1_u32)?;
    // Without this word Xen tells the domain nothing of itself, and with "enabled" it wants a dom0 for the store.
    let mut domain = with(domain, "xen,enhanced", "no-xenstore")?;
    domain.add_child(kernel);
    chosen.add_child(domain);
    // QEMU's words for a kernel's command line are those of a dom0 to Xen, where there are nodes of domains.
    *chosen = with(with_cells(chosen.clone())?, "xen,xen-bootargs", xen)?;
    Ok(tree.to_dtb())
}

fn node(name: &str) -> Result<DeviceTreeNode> {
    DeviceTreeNode::new(name).map_err(|error| anyhow!("{error}"))
}

fn with(
    mut node: DeviceTreeNode,
    name: &str,
    value: impl dtoolkit::ToPropertyValue,
) -> Result<DeviceTreeNode> {
    let property = DeviceTreeProperty::new(name, value).map_err(|error| anyhow!("{error}"))?;
    node.remove_property(name);
    node.add_property(property);
    Ok(node)
}

/// Addresses and sizes of what is below are of 64 bits.
fn with_cells(node: DeviceTreeNode) -> Result<DeviceTreeNode> {
    with(with(node, "#address-cells", 2_u32)?, "#size-cells", 2_u32)
}

#[cfg(test)]
mod tests {
    use dtoolkit::{Node, Property};

    use super::*;

    #[test]
    fn a_domain_stands_beside_what_the_machine_has() {
        let mut tree = DeviceTree::new();
        let mut chosen = with(node("chosen").unwrap(), "stdout-path", "/uart").unwrap();
        chosen = with(chosen, "#address-cells", 1_u32).unwrap();
        tree.root.add_child(chosen);
        let bytes = with_domain(&tree.to_dtb(), 0x1234, "a=b c", "d e").unwrap();
        let tree = Fdt::new(&bytes).unwrap();
        let chosen = tree.root().child("chosen").unwrap();
        let value =
            |node: &dtoolkit::fdt::FdtNode<'_>, name: &str| node.property(name).unwrap().value().to_vec();
        assert_eq!(value(&chosen, "stdout-path"), b"/uart\0");
        assert_eq!(value(&chosen, "#address-cells"), [0, 0, 0, 2]);
        assert_eq!(value(&chosen, "xen,xen-bootargs"), b"d e\0");
        let domain = chosen.child("domU1").unwrap();
        assert_eq!(value(&domain, "compatible"), b"xen,domain\0");
        assert_eq!(value(&domain, "xen,enhanced"), b"no-xenstore\0");
        assert_eq!(value(&domain, "memory"), (32_u64 << 10).to_be_bytes());
        let kernel = domain.child("module@50000000").unwrap();
        assert_eq!(value(&kernel, "compatible"), b"multiboot,kernel\0multiboot,module\0");
        assert_eq!(value(&kernel, "bootargs"), b"a=b c\0");
        assert_eq!(value(&kernel, "reg"), [0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34]);
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        assert!(with_domain(b"no tree", 1, "", "").is_err());
        assert!(
            with_domain(&DeviceTree::new().to_dtb(), 1, "", "").unwrap_err().to_string().contains("/chosen")
        );
    }
}
