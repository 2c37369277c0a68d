//! What the SDK says, crate by crate. A new type or constant is one line in the crate's file.

use crate::List;

mod arguments;
mod block;
mod console;
mod events;
mod grants;
mod hypercalls;
mod machine;
mod network;
mod ring;
mod store;

/// Everything.
pub fn all(list: &mut List) {
    hypercalls::add(list);
    arguments::add(list);
    machine::add(list);
    events::add(list);
    grants::add(list);
    ring::add(list);
    console::add(list);
    store::add(list);
    network::add(list);
    block::add(list);
}
