//! The application's network card and disk: netfront and blkfront, or nothing, as the image's features say.

#[cfg(feature = "disk")]
mod disk;
#[cfg(feature = "net")]
mod nic;

#[cfg(feature = "disk")]
pub(crate) use disk::{Disk, open_disk};
#[cfg(feature = "net")]
pub(crate) use nic::{Nic, open_nic};

/// How long a backend may take to let a device go.
#[cfg(any(feature = "net", feature = "disk"))]
const CLOSING: core::time::Duration = core::time::Duration::from_secs(5);

#[cfg(not(feature = "net"))]
pub(crate) type Nic = webserver::Absent;
#[cfg(not(feature = "disk"))]
pub(crate) type Disk = webserver::Absent;

#[cfg(not(feature = "net"))]
pub(crate) fn open_nic(
    _: crate::machine::Store,
    _: crate::machine::Events,
    _: crate::machine::Grants,
    _: core::time::Duration,
) -> Option<Nic> {
    None
}

#[cfg(not(feature = "disk"))]
pub(crate) fn open_disk(
    _: crate::machine::Store,
    _: crate::machine::Events,
    _: crate::machine::Grants,
    _: core::time::Duration,
) -> Option<Disk> {
    None
}
