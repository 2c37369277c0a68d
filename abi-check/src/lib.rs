#![doc = include_str!("../README.md")]

mod compare;
mod entry;
mod missing;
mod model;
mod report;
pub mod tables;

pub use compare::{Counts, Outcome, Problem, check};
pub use entry::{Entry, Fixed, Is, List, fixed};
pub use missing::{Malformed, Missing, parse};
pub use model::{Const, Field, Headers, Other, Place, Type, Value};
pub use report::{Report, run};

/// What the build script found, and what bindgen made of it.
#[allow(
    warnings,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    unsafe_op_in_unsafe_fn,
    missing_docs,
    reason = "bindgen's output"
)]
mod found {
    include!(concat!(env!("OUT_DIR"), "/headers.rs"));
}
