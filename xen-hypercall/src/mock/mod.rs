//! The hypervisor's side, on the host: several domains with real pages, virtual time, and handlers for the
//! hypercalls. Everything happens in the calling thread and in the same order every time.
//!
//! [`MockXen`] is the machine. [`MockDomain`] is one of its domains and implements all platform traits, so a driver
//! runs on it unchanged. Far sides (a backend, a daemon) are *actors*: closures that [`MockXen::step`] runs, and
//! that a waiting domain runs, too.

mod dice;
mod domain;
mod faults;
mod handlers;
mod machine;
mod memory;
mod pause;
mod room;
mod suspend;
mod turn;
mod vcpu;

pub use dice::{Chance, Dice};
pub use domain::MockDomain;
pub use faults::{HypercallFaults, TraceOnPanic};
pub use machine::{ActorId, MockXen, WeakXen};
