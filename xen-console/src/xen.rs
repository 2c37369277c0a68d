//! Xen's own console, for a kernel that runs as the first domain or on a debug build of Xen.

use core::fmt;

use xen_hypercall::{Hypercall, console_io};

/// Output by hypercall: works before anything else does, but a release build of Xen drops it for all domains but
/// the first.
#[derive(Debug)]
pub struct XenConsole<H>(pub H);

impl<H: Hypercall> fmt::Write for XenConsole<H> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        console_io::write(&self.0, text.as_bytes()).map_err(|_| fmt::Error)
    }
}
