//! What goes wrong on demand.

use xen_hypercall::mock::Chance;

/// How often which use of a grant goes wrong. Nothing does by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Faults {
    /// A use is not done and answered [`GrantStatus::EAGAIN`](crate::GrantStatus::EAGAIN), as for a page that is paged out.
    pub again: Chance,
    /// A copy fails with [`GrantStatus::GENERAL_ERROR`](crate::GrantStatus::GENERAL_ERROR), though all is in order.
    pub copy: Chance,
    /// A mapping fails with [`GrantStatus::NO_SPACE`](crate::GrantStatus::NO_SPACE).
    pub map: Chance,
    /// A domain's request to unmap fails with [`GrantStatus::GENERAL_ERROR`](crate::GrantStatus::GENERAL_ERROR), and the page
    /// stays mapped.
    pub unmap: Chance,
    /// A peer that seems to have let go has the page in use until [`release_kept`](super::release_kept).
    pub keep: Chance,
}

impl Faults {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }
}
