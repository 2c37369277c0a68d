//! What is said by xenstore, for tasks.
#![allow(clippy::manual_async_fn, reason = "the same text is a function for who blocks")]

pub(crate) use xen_xenstore::way::tasks as way;

#[path = "steps.rs"]
pub(crate) mod steps;
