//! The device as other crates want it, a feature for each.

#[cfg(feature = "smoltcp-v0-14")]
mod coalesce;
#[cfg(feature = "smoltcp-v0-14")]
pub mod smoltcp;
