//! The way of who blocks.

use xen_xenstore::way::blocking as way;

#[path = "steps.rs"]
pub(crate) mod steps;
