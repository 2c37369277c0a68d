//! Bringing a device up and down: two domains tell each other by nodes in xenstore how far they are (`io/xenbus.h`).

mod change;
pub(crate) mod device;
mod entry;
pub(crate) mod frontend;
mod state;

pub use change::BackendChange;
pub(crate) use entry::Entry;
pub use frontend::{BackendReady, Connected, Frontend, Initialising, Published};
pub use state::XenbusState;
