//! What is said by xenstore, for tasks.

pub(crate) use xen_xenstore::way::tasks as way;

#[path = "steps.rs"]
pub(crate) mod steps;
