//! What carries the application: the runtime's kernel.

use xen_hypercall::Domain;

pub(crate) use xen_rt::{Kernel, console, memory};

/// The token of the domain, which lives as long as the domain.
pub(crate) type Owned = &'static Domain<&'static Kernel>;
