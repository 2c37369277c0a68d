//! What the ends of the rings have to do, whatever the other end does: for property tests and fuzzers.
//!
//! Each function plays acts on a ring and on its far side, and panics, as tests do, when the ring does another thing than the
//! model, which is as simple as it can be.

mod slots;
mod streams;

pub use slots::{BackAct, FrontAct, back, front, meddled_front};
pub use streams::{StreamAct, meddled_streams, streams};

use core::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

use super::{Meddled, SharedPages};
use crate::SharedMem;

/// Acts that wait for their turn.
type Waiting<A> = Rc<RefCell<Vec<A>>>;

/// Memory in which one of the waiting acts happens before each `every`th access.
fn meddle<A>(
    shared: SharedPages,
    every: u32,
    mut apply: impl FnMut(A),
) -> (Meddled<SharedPages, impl FnMut(&SharedMem<'_>)>, Waiting<A>) {
    let waiting = Waiting::default();
    let (queue, mut count) = (Rc::clone(&waiting), 0_u32);
    let meddled = Meddled::new(shared, move |_: &SharedMem<'_>| {
        count = count.wrapping_add(1);
        if count % every.max(1) == 0 {
            let act = queue.borrow_mut().pop();
            act.into_iter().for_each(&mut apply);
        }
    });
    (meddled, waiting)
}
