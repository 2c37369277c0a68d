//! What dom0 does with domains without the toolstack around it, which takes about as long as a small guest: it lets a paused one run, and sees
//! when none runs.
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

impl DomCtl {
    /// Of `struct xen_domctl_getdomaininfo`: the number, after it the flags.
    fn info(&self) -> (u16, u32) {
        let [low, high, _, _, flags @ ..] = self.rest;
        let [a, b, c, d, ..] = flags;
        (u16::from_le_bytes([low, high]), u32::from_le_bytes([a, b, c, d]))
    }
}

/// `IOCTL_PRIVCMD_HYPERCALL`.
const HYPERCALL: libc::c_ulong =
    ((size_of::<Call>() as libc::c_ulong) << 16) | ((b'P' as libc::c_ulong) << 8);
/// `__HYPERVISOR_domctl`.
const DOMCTL: u64 = 36;
/// `XEN_DOMCTL_unpausedomain`.
const UNPAUSE: u32 = 4;
/// `XEN_DOMCTL_getdomaininfo`.
const INFO: u32 = 5;
/// `XEN_DOMINF_dying`, `_shutdown` and `_paused`.
const STOPPED: u32 = 1 << 0 | 1 << 2 | 1 << 3;
/// What is tried as `XEN_DOMCTL_INTERFACE_VERSION`, of which Xen takes only its own: 0x15 is that of 4.17.
const VERSIONS: std::ops::RangeInclusive<u32> = 0x11..=0x30;

/// The number of the domain with this name.
pub(crate) fn find(name: &str) -> Result<u16> {
    let output = Command::new("xl").args(["domid", name]).output()?;
    let id = String::from_utf8_lossy(&output.stdout).trim().parse();
    id.map_err(|_| Error::other(format!("xl knows no domain {name}")))
}

/// The way into Xen.
pub(crate) struct Xen {
    privcmd: File,
    version: u32,
}

impl Xen {
    /// Opens it.
    pub(crate) fn open() -> Result<Self> {
        let privcmd = OpenOptions::new().read(true).write(true).open("/dev/xen/privcmd")?;
        let mut xen = Self { privcmd, version: *VERSIONS.start() };
        // A command that does not exist: EACCES if the version is not Xen's, ENOSYS if it is.
        while xen.control(u32::MAX, 0).is_err_and(|error| error.raw_os_error() == Some(libc::EACCES)) {
            xen.version += 1;
            if !VERSIONS.contains(&xen.version) {
                return Err(Error::other("this Xen's version of domctl is not known"));
            }
        }
        Ok(xen)
    }

    /// Lets a paused domain run.
    pub(crate) fn unpause(&self, domain: u16) -> Result<()> {
        self.control(UNPAUSE, domain).map(drop)
    }

    /// Whether any domain but dom0 runs, or could.
    pub(crate) fn any_runs(&self) -> Result<bool> {
        let mut next = 1;
        loop {
            // The domain with this number, or the next one that there is.
            let (id, flags) = match self.control(INFO, next) {
                Ok(control) => control.info(),
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(false),
                Err(error) => return Err(error),
            };
            if id < next {
                return Ok(false);
            }
            if flags & STOPPED == 0 {
                return Ok(true);
            }
            next = id + 1;
        }
    }

    fn control(&self, cmd: u32, domain: u16) -> Result<DomCtl> {
        let interface_version = self.version;
        let mut control = DomCtl { cmd, interface_version, domain, pad: [0; 3], rest: [0; 240] };
        let at = (&raw mut control).expose_provenance() as u64;
        let mut call = Call { op: DOMCTL, args: [at, 0, 0, 0, 0] };
        // SAFETY: the structures are as Linux and Xen want them. Xen reads and writes `control` only, which is longer than its
        // own structure, within one page for it is aligned to its size, and there, for it was written just now.
        let result = unsafe { libc::ioctl(self.privcmd.as_raw_fd(), HYPERCALL as _, &raw mut call) };
        if result < 0 { Err(Error::last_os_error()) } else { Ok(control) }
    }
}

/// Lets everybody else go first from here on: on one processor, a thread that asks without end holds up the toolstack tenfold.
pub(crate) fn step_back() {
    // SAFETY: the call changes the priority of the thread that makes it. That it is refused changes nothing.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}
