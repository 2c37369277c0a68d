//! What the test bed can be: one description, a row for each.
//!
//! Nothing outside of the rows depends on an architecture or on a version of Xen.

mod arm64;
mod dom0less;
mod x86_64;

use std::path::Path;

use anyhow::Result;

/// An architecture that Xen and the images are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, clap::ValueEnum)]
pub enum Arch {
    /// 64-bit PCs.
    #[default]
    #[value(name = "x86-64", aliases = ["x86_64", "amd64"])]
    X86_64,
    /// 64-bit Arm.
    #[value(name = "arm64", alias = "aarch64")]
    Arm64,
}

impl Arch {
    /// Its test bed.
    pub fn platform(self) -> &'static Platform {
        match self {
            Self::X86_64 => &x86_64::BED,
            Self::Arm64 => &arm64::BED,
        }
    }
}

/// A test bed: Debian's Xen and Linux for one architecture, and a QEMU that runs them.
#[derive(Debug)]
pub struct Platform {
    /// The architecture.
    pub arch: Arch,
    /// Its name for people.
    pub name: &'static str,
    /// Its folder below that of all beds.
    pub(crate) folder: &'static str,
    /// Debian's name of the architecture.
    pub(crate) debian: &'static str,
    /// The version of Xen, as packages have it in their names.
    pub(crate) xen: &'static str,
    /// Those of Xen's programs that are not there for every architecture.
    pub(crate) programs: &'static [&'static str],
    /// The package that names the current kernel. The cloud kernels lack what a dom0 needs.
    pub(crate) kernel: &'static str,
    /// The folder of a multiarch system's libraries, below `lib` and `usr/lib`.
    pub(crate) libraries: &'static str,
    /// The dynamic loader.
    pub(crate) loader: Loader,
    /// The compiler's name of it, without an operating system. None: the machine's own compiler does.
    pub(crate) target: Option<&'static str>,
    /// What Xen loads.
    pub(crate) format: Format,
    /// More lines of xl's own configuration, `xl.conf`.
    pub(crate) xl: &'static str,
    /// The QEMU.
    pub(crate) emulator: Emulator,
    /// What it takes to boot.
    pub(crate) boot: Boot,
}

/// The form of an image.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Format {
    /// An ELF file.
    Elf,
    /// The bytes as they lie in memory.
    Raw,
}

/// Where the packages keep the dynamic loader.
#[derive(Debug)]
pub(crate) struct Loader {
    /// The file.
    pub(crate) file: &'static str,
    /// The link that programs name, and where it leads.
    pub(crate) link: (&'static str, &'static str),
}

/// A program that is a whole machine.
#[derive(Debug)]
pub(crate) struct Emulator {
    /// Its name.
    pub(crate) program: &'static str,
    /// Debian's package of it.
    pub(crate) package: &'static str,
    /// What the machine is.
    pub(crate) args: &'static [&'static str],
    /// Its memory in MiB, where nobody wishes for another size.
    pub(crate) memory: u32,
    /// How much of it dom0 has.
    pub(crate) dom0_memory: u32,
}

/// How Xen, dom0's kernel and its initramfs get into the machine.
#[derive(Debug)]
pub(crate) struct Boot {
    /// Xen's file below `boot` of the packages.
    pub(crate) xen: &'static str,
    /// What Xen's command line has here alone.
    pub(crate) options: &'static str,
    /// What it has besides if dom0 is no Linux.
    pub(crate) other_options: &'static str,
    /// Makes what QEMU loads.
    pub(crate) place: fn(&Files<'_>) -> Result<()>,
    /// QEMU's words for dom0's kernel, its command line and its initramfs, if it has one; all are files of the bed's folder.
    pub(crate) modules: fn(kernel: &str, cmdline: &str, initramfs: Option<&str>) -> Vec<String>,
    /// QEMU's words for a kernel that is no dom0 and has none, where Xen can do that.
    pub(crate) dom0less: Option<Dom0lessWords>,
}

/// Makes QEMU's words.
pub(crate) type Dom0lessWords = fn(&Dom0less<'_>) -> Result<Vec<String>>;

/// A kernel that Xen boots by itself, as no dom0.
#[derive(Debug)]
pub(crate) struct Dom0less<'a> {
    /// The bed's folder, where all files are.
    pub(crate) dir: &'a Path,
    /// QEMU's program.
    pub(crate) qemu: &'a Path,
    /// The kernel.
    pub(crate) kernel: &'a str,
    /// Its command line.
    pub(crate) cmdline: &'a str,
    /// That of Xen.
    pub(crate) xen: &'a str,
}

/// Where the kernels are and where they have to be.
#[derive(Debug)]
pub(crate) struct Files<'a> {
    /// The unpacked packages.
    pub(crate) root: &'a Path,
    /// The bed's folder.
    pub(crate) dir: &'a Path,
    /// Xen, as its package has it.
    pub(crate) xen: &'a Path,
    /// dom0's kernel, as its package has it.
    pub(crate) kernel: &'a Path,
}

impl Platform {
    /// Xen, in the bed's folder, as QEMU loads it.
    pub(crate) const XEN: &str = "xen";
    /// dom0's kernel, in the bed's folder, as Xen loads it.
    pub(crate) const KERNEL: &str = "vmlinux";
}
