//! Xen's own console (`CONSOLEIO_*` of `xen.h`). It works before anything is set up. A release build of Xen shows the output
//! of the first domain only. PV guests have these calls in every Xen, others since 4.4.
#![allow(unsafe_code, reason = "hands over buffers")]

use crate::abi::{CONSOLEIO_READ, CONSOLEIO_WRITE};
use crate::{Errno, Hypercall, HypercallNr};

/// Writes text to Xen's console.
///
/// # Errors
/// `EPERM` or `ENOSYS` where the domain has no access to the console.
pub fn write(xen: &(impl Hypercall + ?Sized), text: &[u8]) -> Result<(), Errno> {
    let pointer = text.as_ptr().expose_provenance();
    // SAFETY: CONSOLEIO_write reads `text.len()` bytes at the pointer, all of them borrowed.
    Errno::check(unsafe {
        xen.hypercall(HypercallNr::CONSOLE_IO, [CONSOLEIO_WRITE, text.len(), pointer, 0, 0])
    })
    .map(drop)
}

/// Reads the input of Xen's console. Returns the number of bytes read, at most `buffer.len()`.
///
/// # Errors
/// `EPERM` for all but the first domain.
pub fn read(xen: &(impl Hypercall + ?Sized), buffer: &mut [u8]) -> Result<usize, Errno> {
    let pointer = buffer.as_mut_ptr().expose_provenance();
    // SAFETY: CONSOLEIO_read writes at most `buffer.len()` bytes at the pointer, all of them exclusively borrowed.
    let count = Errno::check(unsafe {
        xen.hypercall(HypercallNr::CONSOLE_IO, [CONSOLEIO_READ, buffer.len(), pointer, 0, 0])
    })?;
    Ok(count.min(buffer.len()))
}
