//! The way of who blocks: see [the module above](super).
#![allow(clippy::duplicate_mod, reason = "a conversation is compiled for either way")]

pub use crate::{__blocking_run as run, __blocking_task as task, __blocking_wait as wait};

#[path = "ask.rs"]
mod ask;
#[path = "../xenbus/bus_steps.rs"]
pub mod bus;
#[path = "../xenbus/steps.rs"]
pub mod frontend;

pub use ask::Ask;
pub(crate) use ask::Primitives;
