//! What is said by xenstore, for who blocks.

pub(crate) use xen_xenstore::way::blocking as way;

#[path = "steps.rs"]
pub(crate) mod steps;
