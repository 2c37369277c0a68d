//! The way of tasks.

use xen_xenstore::way::tasks as way;

#[path = "steps.rs"]
pub(crate) mod steps;
