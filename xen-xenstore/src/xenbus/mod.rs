//! Bringing a device up and down: two domains tell each other by nodes in xenstore how far they are (`io/xenbus.h`).

pub(crate) mod bus;
mod change;
pub(crate) mod device;
mod entry;
pub(crate) mod frontend;
mod opening;
mod state;

pub use bus::{Bus, BusDevice, BusEvent};
pub use change::BackendChange;
pub(crate) use entry::Entry;
pub use frontend::{BackendReady, Connected, Frontend, Initialising, Published};
pub use state::XenbusState;
