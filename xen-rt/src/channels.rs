//! Event channels that stay for as long as the domain does. Nobody closes them, and a resume binds them again.

use xen_evtchn::Channel;

use crate::machine::{self, Kernel};

type Kept = Channel<'static, &'static Kernel>;

/// Keeps a channel of a VIRQ or an IPI.
pub(crate) fn keep(channel: Kept) -> &'static Kept {
    #[cfg(feature = "suspend")]
    return list::keep(channel);
    #[cfg(not(feature = "suspend"))]
    machine::keep(channel)
}

#[cfg(feature = "suspend")]
pub(crate) use list::rebind;

#[cfg(feature = "suspend")]
mod list {
    use xen_hypercall::{Restore, RestoreError};

    use super::{Kept, machine};
    use crate::lock::Lock;

    struct Node {
        channel: Kept,
        next: Lock<Option<&'static Node>>,
    }

    static FIRST: Lock<Option<&'static Node>> = Lock::new(None);

    pub(super) fn keep(channel: Kept) -> &'static Kept {
        let node: &'static Node = machine::keep(Node { channel, next: Lock::new(None) });
        FIRST.with(|first| {
            node.next.with(|next| *next = *first);
            *first = Some(node);
        });
        &node.channel
    }

    /// Binds all of them in a new domain, after the event channels.
    pub(crate) fn rebind() -> Result<(), RestoreError> {
        let first = FIRST.with(|first| *first).flatten();
        let mut nodes = core::iter::successors(first, |node| node.next.with(|next| *next).flatten());
        nodes.try_for_each(|node| (&mut &node.channel).restore())
    }
}
