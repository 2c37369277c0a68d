//! The guest's page and port by `/dev/xen/gntdev` and `/dev/xen/evtchn` (`xen/gntdev.h` and `xen/evtchn.h` of Linux).
#![allow(unsafe_code, reason = "maps another domain's page")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use own_kernel_sample::{Heartbeat, Reply, SharedPage};
use xen_hypercall::PAGE_SIZE;
use xen_ring::{Back, RingError};

/// What the beats' interval is to be, in milliseconds.
const NEXT: u32 = 100;

/// The number of an ioctl without a direction, as Linux' `_IOC` makes it.
const fn number(kind: u8, index: u8, size: usize) -> libc::c_ulong {
    (size as libc::c_ulong) << 16 | (kind as libc::c_ulong) << 8 | index as libc::c_ulong
}

#[repr(C)]
struct MapGrantRef {
    count: u32,
    pad: u32,
    /// Where in the device's file the page is then.
    index: u64,
    domain: u32,
    reference: u32,
}

const MAP_GRANT_REF: libc::c_ulong = number(b'G', 0, size_of::<MapGrantRef>());

#[repr(C)]
struct BindInterdomain {
    domain: u32,
    port: u32,
}

const BIND_INTERDOMAIN: libc::c_ulong = number(b'E', 1, size_of::<BindInterdomain>());

#[repr(C)]
struct Notify {
    port: u32,
}

const NOTIFY: libc::c_ulong = number(b'E', 4, size_of::<Notify>());

/// Runs an ioctl.
///
/// # Safety
/// The command takes this structure.
unsafe fn control<T>(file: &File, command: libc::c_ulong, argument: &mut T) -> io::Result<u32> {
    // SAFETY: the caller knows the command; the structure is borrowed during the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), command as _, core::ptr::from_mut(argument)) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Replies to `beats` beats of a domain as they come, and to those that are there before; then unmaps the page and closes the
/// port.
pub(crate) fn answer(domain: u32, reference: u32, port: u32, beats: u32) -> io::Result<()> {
    let open = |path| File::options().read(true).write(true).open(path);
    let (grants, mut events) = (open("/dev/xen/gntdev")?, open("/dev/xen/evtchn")?);
    let mut map = MapGrantRef { count: 1, pad: 0, index: 0, domain, reference };
    // SAFETY: the command of `gntdev.h` with its structure, for one reference.
    unsafe { control(&grants, MAP_GRANT_REF, &mut map) }?;
    // SAFETY: a new mapping, at a place of the system's choice.
    let page = unsafe {
        libc::mmap(
            core::ptr::null_mut(),
            PAGE_SIZE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            grants.as_raw_fd(),
            map.index as libc::off_t,
        )
    };
    let page =
        NonNull::new(page).filter(|_| page != libc::MAP_FAILED).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the command of `evtchn.h` with its structure.
    let local = unsafe { control(&events, BIND_INTERDOMAIN, &mut BindInterdomain { domain, port }) }?;
    // SAFETY: the mapping stays until the program ends, and only the ring uses it.
    let mut ring =
        Back::<Heartbeat, _>::attach(unsafe { SharedPage::new(page.cast()) }).map_err(io::Error::other)?;
    // Those that waited for a monitor do not count.
    round(&mut ring, &events, local)?;
    let mut answered = 0;
    while answered < beats {
        if !ring.arm().map_err(io::Error::other)? {
            // Blocks until there is an event, and lets the port have the next one.
            let mut came = [0; 4];
            events.read_exact(&mut came)?;
            events.write_all(&came)?;
        }
        answered += round(&mut ring, &events, local)?;
    }
    Ok(())
}

/// Replies to the beats that are there, and returns how many.
fn round(ring: &mut Back<Heartbeat, SharedPage>, events: &File, port: u32) -> io::Result<u32> {
    let broken = |error: RingError| io::Error::other(error);
    let mut count = 0;
    while let Some(beat) = ring.pop().map_err(broken)? {
        println!("beat {} at {} ms", beat.id, beat.uptime);
        ring.push(&Reply { id: beat.id, next: NEXT }).map_err(broken)?;
        count += 1;
    }
    if ring.publish().map_err(broken)? {
        // SAFETY: the command of `evtchn.h` with its structure.
        unsafe { control(events, NOTIFY, &mut Notify { port }) }?;
    }
    Ok(count)
}
