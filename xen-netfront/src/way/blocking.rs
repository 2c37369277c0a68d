//! The way of who blocks.

use xen_xenstore::way::blocking as way;

#[path = "connect.rs"]
pub(crate) mod connect;
#[path = "follow.rs"]
pub(crate) mod follow;
