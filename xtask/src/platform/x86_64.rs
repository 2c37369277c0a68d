//! Xen for x86-64 on a PC without anything that emulates it badly.

use std::fs::{self, File};

use anyhow::{Context, Result, ensure};

use super::{Arch, Boot, Emulator, Files, Format, Loader, Platform};
use crate::deb;

pub(super) static BED: Platform = Platform {
    arch: Arch::X86_64,
    name: "x86-64",
    folder: "",
    debian: "amd64",
    xen: "4.17",
    programs: &["lsevtchn"],
    kernel: "linux-image-amd64",
    libraries: "x86_64-linux-gnu",
    loader: Loader {
        file: "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        link: ("lib64/ld-linux-x86-64.so.2", "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
    },
    target: None,
    format: Format::Elf,
    // Guests keep off the first processor, in whose state QEMU 7.2 to 10.0 keep the flag of IGNNE#. Each `fxrstor` and `xrstor` of
    // another processor clears that bit there, and not at once: it reads the word, which says whether nested page tables are in use, too,
    // and writes it back. A VMRUN or #VMEXIT between the two is undone in part: Xen's registers become the guest's, the guest uses
    // Xen's memory as its own, or no interrupt comes any more.
    xl: "vm.hvm.cpumask=\"1\"\n",
    emulator: Emulator {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        // smap, monitor and rdtscp are off because QEMU's emulation of them stops Xen or dom0. Without xsave there is no AVX:
        // with it, programs of dom0 and of Linux guests now and then die of an AVX instruction that is suddenly invalid.
        args: &["-cpu", "EPYC,+svm,+npt,-smap,-monitor,-rdtscp,-xsave", "-smp", "2"],
        memory: 2048,
        dom0_memory: 768,
    },
    boot: Boot {
        xen: "xen-4.17-amd64.gz",
        options: "console=com1 com1=115200 no-real-mode spec-ctrl=no cpuidle=0",
        other_options: "dom0=pvh dom0-iommu=none",
        place,
        modules,
        dom0less: None,
    },
};

/// Xen becomes the ELF that QEMU can load, and so does the kernel: Xen would take seconds to unpack it in an emulated machine.
fn place(files: &Files<'_>) -> Result<()> {
    let packed = File::open(files.xen).with_context(|| format!("cannot open {}", files.xen.display()))?;
    let target = files.dir.join(Platform::XEN);
    let mut plain = File::create(&target).with_context(|| format!("cannot create {}", target.display()))?;
    std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut plain)
        .with_context(|| format!("cannot unpack {}", files.xen.display()))?;

    let kernel = files.kernel.display();
    let image = fs::read(files.kernel).with_context(|| format!("cannot read {kernel}"))?;
    let packed = payload(&image).with_context(|| format!("{kernel} is not a bzImage"))?;
    ensure!(
        cfg!(target_arch = "x86_64"),
        "this test bed needs an x86-64 machine: dom0's kernel is unpacked by a program for it"
    );
    let part = files.dir.join("vmlinux.xz");
    fs::write(&part, packed).with_context(|| format!("cannot write {}", part.display()))?;
    // The packages' program on the packages' libraries, whatever this machine has of its own.
    let libraries = ["lib", "usr/lib"].map(|dir| files.root.join(dir).join(BED.libraries));
    let libraries = std::env::join_paths(libraries).context("a colon in the name of the bed's folder")?;
    let xz = files.root.join("usr/bin/xz");
    let args = ["--library-path".as_ref(), libraries.as_os_str(), xz.as_os_str()];
    let args = [args.as_slice(), &["-d", "-f", "vmlinux.xz"].map(AsRef::as_ref)].concat();
    deb::output(files.root.join(BED.loader.file), &args, files.dir)
        .with_context(|| format!("cannot unpack the kernel in {kernel}"))?;
    Ok(())
}

/// The compressed ELF in a bzImage, by the fields of Linux's boot protocol.
fn payload(image: &[u8]) -> Option<&[u8]> {
    const SECTOR: usize = 512;
    /// The size of the unpacked kernel, which follows the compressed bytes and is counted with them.
    const TRAILER: usize = 4;
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup = usize::from(*image.get(0x1f1)?);
    let start = (setup + 1) * SECTOR + word(0x248)?;
    image.get(start..)?.get(..word(0x24c)?.checked_sub(TRAILER)?)
}

/// QEMU takes the modules of a multiboot kernel as a list, each a file and its command line.
fn modules(kernel: &str, cmdline: &str, initramfs: Option<&str>) -> Vec<String> {
    let initramfs = initramfs.map_or_else(String::new, |file| format!(",{file}"));
    vec!["-initrd".to_owned(), format!("{kernel} {cmdline}{initramfs}")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_and_its_initramfs_are_one_list() {
        assert_eq!(modules("k", "a b", Some("i")), ["-initrd", "k a b,i"]);
        assert_eq!(modules("k", "a", None), ["-initrd", "k a"]);
    }

    #[test]
    fn the_kernel_in_a_bzimage_is_found() {
        let mut image = vec![0; 4 * 512 + 20];
        image[0x1f1] = 3;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248] = 5;
        image[0x24c] = 10;
        image[4 * 512 + 5..4 * 512 + 11].copy_from_slice(b"kernel");
        assert_eq!(payload(&image), Some(&b"kernel"[..]));
        assert_eq!(payload(&image[..4 * 512 + 8]), None);
        assert_eq!(payload(b"\x7fELF"), None);
    }
}
