//! xen-hypercall.
use crate::{List, types};
use xen_hypercall::abi::*;
pub(super) fn add(list: &mut List) {
    types!(list, {
        SchedPoll = sched_poll { ports, nr_ports, pad0: _, timeout }
    });
}
