//! The one hypercall that lets a paused domain run, without the toolstack around it, which takes about as long as a small guest.
#![allow(unsafe_code, reason = "hypercalls of a Linux dom0 are an ioctl")]

use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::process::Command;

/// `struct privcmd_hypercall` of Linux' xen/privcmd.h.
#[repr(C)]
struct Call {
    op: u64,
    args: [u64; 5],
}

/// `struct xen_domctl` of Xen's domctl.h, whose end is as long as its longest member.
#[derive(Clone, Copy)]
#[repr(C, align(256))]
struct DomCtl {
    cmd: u32,
    interface_version: u32,
    domain: u16,
    pad: [u16; 3],
    rest: [u8; 240],
}

/// `IOCTL_PRIVCMD_HYPERCALL`.
const HYPERCALL: libc::c_ulong =
    ((size_of::<Call>() as libc::c_ulong) << 16) | ((b'P' as libc::c_ulong) << 8);
/// `__HYPERVISOR_domctl`.
const DOMCTL: u64 = 36;
/// `XEN_DOMCTL_unpausedomain`.
const UNPAUSE: u32 = 4;
/// What is tried as `XEN_DOMCTL_INTERFACE_VERSION`, of which Xen takes only its own: 0x15 is that of 4.17.
const VERSIONS: std::ops::RangeInclusive<u32> = 0x11..=0x30;

/// A domain that can be let run at once.
pub(crate) struct Paused {
    privcmd: File,
    id: u16,
    version: u32,
}

impl Paused {
    /// Finds a domain by its name.
    pub(crate) fn find(name: &str) -> Result<Self> {
        let output = Command::new("xl").args(["domid", name]).output()?;
        let id = String::from_utf8_lossy(&output.stdout).trim().parse();
        let id = id.map_err(|_| Error::other(format!("xl knows no domain {name}")))?;
        let privcmd = OpenOptions::new().read(true).write(true).open("/dev/xen/privcmd")?;
        let mut paused = Self { privcmd, id, version: *VERSIONS.start() };
        // A command that does not exist: EACCES if the version is not Xen's, ENOSYS if it is.
        while paused.control(u32::MAX).is_err_and(|error| error.raw_os_error() == Some(libc::EACCES)) {
            paused.version += 1;
            if !VERSIONS.contains(&paused.version) {
                return Err(Error::other("this Xen's version of domctl is not known"));
            }
        }
        Ok(paused)
    }

    /// Lets it run.
    pub(crate) fn unpause(&self) -> Result<()> {
        self.control(UNPAUSE)
    }

    fn control(&self, cmd: u32) -> Result<()> {
        let (interface_version, domain) = (self.version, self.id);
        let mut control = DomCtl { cmd, interface_version, domain, pad: [0; 3], rest: [0; 240] };
        let at = (&raw mut control).expose_provenance() as u64;
        let mut call = Call { op: DOMCTL, args: [at, 0, 0, 0, 0] };
        // SAFETY: the structures are as Linux and Xen want them. Xen reads and writes `control` only, which is longer than its
        // own structure, within one page for it is aligned to its size, and there, for it was written just now.
        let result = unsafe { libc::ioctl(self.privcmd.as_raw_fd(), HYPERCALL as _, &raw mut call) };
        if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
    }
}
