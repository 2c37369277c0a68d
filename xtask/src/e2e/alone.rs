//! Images that Xen boots by itself, without a Linux as dom0.

use anyhow::{Context, Result};

use crate::deb;
use crate::platform::Arch;
use crate::qemu::{Machine, Qemu, System};

/// Starts Xen with an image as the first domain.
pub(super) fn start(arch: Arch, name: &str, image: &[u8], vcpus: u32, cmdline: &str) -> Result<Qemu> {
    let (_lock, bed) = deb::ensure(arch.platform())?;
    let kernel = format!("{name}.dom0");
    std::fs::write(bed.dir.join(&kernel), image).context("cannot put the image beside Xen")?;
    let machine = Machine {
        memory: Some(512),
        dom0_memory: Some(64),
        system: System::Other { kernel, cmdline: cmdline.to_owned(), vcpus },
        disk: None,
        forwards: Vec::new(),
        echo: false,
    };
    Qemu::start(&bed, &machine)
}
