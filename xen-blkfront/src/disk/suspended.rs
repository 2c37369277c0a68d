//! A disk that tasks use goes on after the domain was resumed in a new one.

use core::time::Duration;

use xen_hypercall::{Platform, Wait};
use xen_xenstore::Xenstore;
use xen_xenstore::suspend::Device;

use super::Disk;
use crate::{BlkFront, Resuming};

/// As [`BlkFront`] is one, with the tasks that wait: what is not answered is issued again, and their futures go on. An empty place
/// takes part, too, and stays empty.
impl<'x, P: Platform + Wait> Device<'x, P> for &Disk<'x, P> {
    type Begun = Option<Resuming<'x, P>>;

    fn quiesce(&mut self, xs: &mut Xenstore<'x, P>) {
        let _ = self.as_it_is(|front| front.quiesce(xs));
    }

    fn begin(&mut self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> Self::Begun {
        {
            // What is being said to the backend of before is of no meaning any more.
            let mut place = self.place.borrow_mut();
            place.epoch = place.epoch.wrapping_add(1);
        }
        self.as_it_is(|front| front.begin(xs, deadline))
    }

    fn finish(&mut self, begun: Self::Begun, xs: &mut Xenstore<'x, P>, deadline: Duration) -> usize {
        let absent = begun.and_then(|begun| self.as_it_is(|front| front.finish(begun, xs, deadline)));
        self.place.borrow_mut().held = false;
        self.settle();
        absent.unwrap_or(0)
    }

    fn go_on(&mut self) {
        let _ = self.with(BlkFront::go_on);
    }
}
