//! The way of tasks: see [the module above](super).
#![allow(
    clippy::duplicate_mod,
    clippy::manual_async_fn,
    reason = "a conversation is compiled for either way"
)]

pub use crate::{__tasks_run as run, __tasks_task as task, __tasks_wait as wait};

#[path = "ask.rs"]
mod ask;
#[path = "../xenbus/bus_steps.rs"]
pub mod bus;
#[path = "../xenbus/steps.rs"]
pub mod frontend;

pub use ask::Ask;
pub(crate) use ask::Primitives;
