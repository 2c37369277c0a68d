//! Images that Xen boots by itself, without a Linux as dom0.

use anyhow::{Context, Result};

use crate::deb;
use crate::platform::Arch;
use crate::qemu::{Machine, Qemu, System};

/// Starts Xen with an image as the first domain.
pub(super) fn start(arch: Arch, name: &str, image: &[u8], vcpus: u32, cmdline: &str) -> Result<Qemu> {
    boot(arch, &format!("{name}.dom0"), image, |kernel| System::Other {
        kernel,
        cmdline: cmdline.to_owned(),
        vcpus,
    })
}

/// Starts Xen with an image as the only domain, and one without rights.
pub(super) fn start_dom0less(arch: Arch, name: &str, image: &[u8], cmdline: &str) -> Result<Qemu> {
    boot(arch, &format!("{name}.domU"), image, |kernel| System::Dom0less {
        kernel,
        cmdline: cmdline.to_owned(),
    })
}

fn boot(arch: Arch, name: &str, image: &[u8], system: impl FnOnce(String) -> System) -> Result<Qemu> {
    let (_lock, bed) = deb::ensure(arch.platform())?;
    std::fs::write(bed.dir.join(name), image).context("cannot put the image beside Xen")?;
    let machine = Machine {
        memory: Some(512),
        dom0_memory: Some(64),
        system: system(name.to_owned()),
        disk: None,
        forwards: Vec::new(),
        echo: false,
    };
    Qemu::start(&bed, &machine)
}
