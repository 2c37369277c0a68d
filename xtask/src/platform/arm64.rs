//! Xen for arm64 on QEMU's `virt`, which makes the device tree.

use std::fs;

use anyhow::{Context, Result};

use super::{Arch, Boot, Emulator, Files, Format, Loader, Platform, dom0less};

pub(super) static BED: Platform = Platform {
    arch: Arch::Arm64,
    name: "arm64",
    folder: "arm64",
    debian: "arm64",
    xen: "4.17",
    programs: &[],
    kernel: "linux-image-arm64",
    libraries: "aarch64-linux-gnu",
    loader: Loader {
        file: "lib/aarch64-linux-gnu/ld-linux-aarch64.so.1",
        link: ("lib/ld-linux-aarch64.so.1", "aarch64-linux-gnu/ld-linux-aarch64.so.1"),
    },
    target: Some("aarch64-unknown-none"),
    format: Format::Raw,
    xl: "",
    emulator: Emulator {
        program: "qemu-system-aarch64",
        package: "qemu-system-arm",
        args: &["-machine", "virt,virtualization=on,gic-version=3", "-cpu", "neoverse-n1", "-smp", "2"],
        // To touch memory for the first time is most of what the boot takes.
        memory: 1024,
        dom0_memory: 384,
    },
    boot: Boot {
        xen: "xen-4.17-arm64",
        // Debian's Xen for Arm keeps domains other than dom0 apart (SILO) unless it is told otherwise; the self-test is two of them.
        options: "console=dtuart dtuart=/pl011@9000000 xsm=dummy",
        other_options: "",
        place,
        modules,
        dom0less: Some(|domain| dom0less::words(&BED, domain)),
    },
};

/// Both are already what is loaded.
fn place(files: &Files<'_>) -> Result<()> {
    for (from, to) in [(files.xen, Platform::XEN), (files.kernel, Platform::KERNEL)] {
        let to = files.dir.join(to);
        fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}

/// Where the kernel and the initramfs are put. Memory begins at 1 GiB, with Xen and the device tree; 128 MiB are more than a
/// kernel has.
const KERNEL_AT: u32 = 0x5000_0000;
const INITRAMFS_AT: u32 = 0x5800_0000;

fn modules(kernel: &str, cmdline: &str, initramfs: Option<&str>) -> Vec<String> {
    // A comma ends a QEMU option's value unless it is doubled.
    let cmdline = cmdline.replace(',', ",,");
    let kernel = format!("guest-loader,addr={KERNEL_AT:#x},kernel={kernel},bootargs={cmdline}");
    let initramfs = initramfs.map(|file| format!("guest-loader,addr={INITRAMFS_AT:#x},initrd={file}"));
    [Some(kernel), initramfs]
        .into_iter()
        .flatten()
        .flat_map(|device| ["-device".to_owned(), device])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_and_its_initramfs_are_two_devices() {
        assert_eq!(
            modules("k", "a=1,2 b", Some("i")),
            [
                "-device",
                "guest-loader,addr=0x50000000,kernel=k,bootargs=a=1,,2 b",
                "-device",
                "guest-loader,addr=0x58000000,initrd=i"
            ]
        );
        assert_eq!(modules("k", "", None).len(), 2);
    }
}
