//! What the SDK says, crate by crate.

use crate::List;

mod hypercall;

/// Everything.
pub fn all(list: &mut List) {
    hypercall::add(list);
}
