//! Two ways to wait for xenstore, and how a conversation with it is written once for both.
//!
//! Who blocks needs small code, and who runs tasks needs futures. So a conversation, such as a device's handshake, is a file that is
//! compiled twice, with three macros of either way:
//!
//! | | [`blocking`] | [`tasks`] |
//! |---|---|---|
//! | `task!(T)`, what a function returns | `T` | `impl Future<Output = T>` |
//! | `run!({ .. })`, its body | the block | the block as a future |
//! | `wait!(call)` | the call | the call, awaited |
//!
//! Such a file asks by the way's trait `Ask`, and calls the way's functions, among them the steps of [`frontend`](tasks::frontend). It is
//! a module twice, each time below one that names its way:
//!
//! ```ignore
//! //! src/blocking.rs
//! pub(crate) use xen_xenstore::way::blocking as way;
//! #[path = "steps.rs"]
//! pub(crate) mod steps;
//!
//! //! src/tasks.rs
//! pub(crate) use xen_xenstore::way::tasks as way;
//! #[path = "steps.rs"]
//! pub(crate) mod steps;
//!
//! //! src/steps.rs
//! use super::way::{Ask, frontend, run, task, wait};
//!
//! pub(crate) fn is_there<A: Ask>(ask: &mut A, index: u32) -> task!(Result<bool, Error>) {
//!     run!({
//!         let device = wait!(frontend::open(ask, "vif", index))?;
//!         wait!(frontend::abandon(device, ask))?;
//!         Ok(true)
//!     })
//! }
//! ```

pub mod blocking;
pub mod tasks;

/// What a function of a conversation returns.
#[doc(hidden)]
#[macro_export]
macro_rules! __blocking_task {
    ($output:ty) => {
        $output
    };
}

/// Its body.
#[doc(hidden)]
#[macro_export]
macro_rules! __blocking_run {
    ($body:block) => {
        $body
    };
}

/// A call that waits.
#[doc(hidden)]
#[macro_export]
macro_rules! __blocking_wait {
    ($call:expr) => {
        $call
    };
}

/// What a function of a conversation returns.
#[doc(hidden)]
#[macro_export]
macro_rules! __tasks_task {
    ($output:ty) => {
        impl ::core::future::Future<Output = $output>
    };
}

/// Its body.
#[doc(hidden)]
#[macro_export]
macro_rules! __tasks_run {
    ($body:block) => {
        async move $body
    };
}

/// A call that waits.
#[doc(hidden)]
#[macro_export]
macro_rules! __tasks_wait {
    ($call:expr) => {
        ($call).await
    };
}
