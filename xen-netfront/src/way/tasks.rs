//! The way of tasks.

use xen_xenstore::way::tasks as way;

#[path = "connect.rs"]
pub(crate) mod connect;
#[path = "follow.rs"]
pub(crate) mod follow;
