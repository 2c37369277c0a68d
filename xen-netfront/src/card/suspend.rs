//! A device in a place, when the domain is suspended.

use core::time::Duration;

use xen_hypercall::{Platform, Wait};
use xen_xenstore::Xenstore;
use xen_xenstore::suspend::Device;

use super::{Card, Controller};
use crate::NetFront;

/// The device that is in the place, as [`NetFront`]: nobody [controls](Card::control) it meanwhile. Without a device there is nothing to do.
impl<'x, P: Platform + Wait, const QUEUES: usize> Device<'x, P> for &Card<'x, P, QUEUES> {
    type Begun = Option<<NetFront<'x, P, QUEUES> as Device<'x, P>>::Begun>;

    fn quiesce(&mut self, xs: &mut Xenstore<'x, P>) {
        self.with(|front| front.quiesce(xs));
    }

    fn begin(&mut self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> Self::Begun {
        self.with(|front| front.begin(xs, deadline))
    }

    fn finish(&mut self, begun: Self::Begun, xs: &mut Xenstore<'x, P>, deadline: Duration) -> usize {
        let absent = begun.and_then(|begun| self.with(|front| front.finish(begun, xs, deadline)));
        // The rings are new, whether the device counts that or not.
        self.tell_all();
        absent.unwrap_or(0)
    }

    fn go_on(&mut self) {
        self.with(NetFront::go_on);
        // Events may have been missed, so all look again.
        self.tell_all();
    }
}

/// The device that is controlled. Nobody [runs](Controller::run) the control meanwhile; whoever does so afterwards connects a device that
/// did not come back.
impl<'x, P: Platform + Wait, const QUEUES: usize> Device<'x, P> for Controller<'_, 'x, P, QUEUES> {
    type Begun = <&'x Card<'x, P, QUEUES> as Device<'x, P>>::Begun;

    fn quiesce(&mut self, xs: &mut Xenstore<'x, P>) {
        self.reunite();
        let mut card = self.card();
        card.quiesce(xs);
    }

    fn begin(&mut self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> Self::Begun {
        self.reunite();
        let mut card = self.card();
        card.begin(xs, deadline)
    }

    fn finish(&mut self, begun: Self::Begun, xs: &mut Xenstore<'x, P>, deadline: Duration) -> usize {
        let mut card = self.card();
        card.finish(begun, xs, deadline)
    }

    fn go_on(&mut self) {
        let mut card = self.card();
        card.go_on();
    }
}
