//! The domain is saved, restored, migrated.

use alloc::boxed::Box;
use core::time::Duration;

use webserver::Network;
use webserver::report::Report;
use xen_hypercall::Restore;
use xen_hypercall::sched::Resumed;
use xen_rt::Guest;
use xen_xenstore::Xenstore;
use xen_xenstore::control::ShutdownWatch;
use xen_xenstore::suspend::Device;

use crate::devices::{Disk, Nic, PATIENCE};
use crate::platform::Kernel;

/// What a suspend takes, and how many there were.
pub(crate) struct Suspend {
    guest: Guest,
    part: Option<Box<dyn Restore>>,
    /// As another domain.
    resumes: u64,
    /// As the same one.
    checkpoints: u64,
}

impl Suspend {
    pub(crate) fn new(guest: Guest) -> Self {
        Self { guest, part: None, resumes: 0, checkpoints: 0 }
    }

    /// Takes what has to be set up again before the devices, and leaves nothing.
    pub(crate) fn take_part(&mut self, part: Option<Box<dyn Restore>>) -> Option<Box<dyn Restore>> {
        self.part = part;
        None
    }

    /// Suspends the domain as it was asked for, and returns when it goes on.
    pub(crate) fn run<N: Network<Nic>>(
        &mut self,
        xs: &mut Xenstore<'static, &'static Kernel>,
        request: &ShutdownWatch,
        net: Option<&mut N>,
        disk: Option<&Disk>,
    ) {
        let devices = &mut Both(net_of(net, self.guest), disk_of(disk));
        let outcome = match &mut self.part {
            Some(part) => self.guest.suspend(xs, Some(request), &mut [&mut **part], devices, PATIENCE),
            None => self.guest.suspend(xs, Some(request), &mut [], devices, PATIENCE),
        };
        match outcome {
            Ok(outcome) if outcome.resumed == Resumed::InPlace => {
                self.checkpoints += 1;
                log::info!("suspended, and here again");
            }
            Ok(outcome) => {
                self.resumes += 1;
                log::info!("resumed as another domain");
                if outcome.absent > 0 {
                    log::warn!("{} of the devices did not come along", outcome.absent);
                }
            }
            Err(error) => log::error!("{error}"),
        }
    }

    pub(crate) fn report(&self, to: &mut dyn Report) {
        // What a new domain may tell wrongly.
        to.figure("unix_time_seconds", self.guest.unix_time().as_secs());
        to.figure("resumes_total", self.resumes);
        to.figure("checkpoints_total", self.checkpoints);
    }
}

/// Card and disk. The card comes last, as long as the domain runs, for what arrives then is not lost, and first afterwards.
struct Both<C, D>(C, D);

type Xs = Xenstore<'static, &'static Kernel>;

impl<C, D> Device<'static, &'static Kernel> for Both<C, D>
where
    C: Device<'static, &'static Kernel>,
    D: Device<'static, &'static Kernel>,
{
    type Begun = (C::Begun, D::Begun);

    fn quiesce(&mut self, xs: &mut Xs) {
        self.1.quiesce(xs);
        self.0.quiesce(xs);
    }

    fn begin(&mut self, xs: &mut Xs, deadline: Duration) -> Self::Begun {
        (self.0.begin(xs, deadline), self.1.begin(xs, deadline))
    }

    fn finish(&mut self, (card, disk): Self::Begun, xs: &mut Xs, deadline: Duration) -> usize {
        self.0.finish(card, xs, deadline) + self.1.finish(disk, xs, deadline)
    }

    fn go_on(&mut self) {
        self.0.go_on();
        self.1.go_on();
    }
}

/// The card as a device to suspend, with the network stack that takes in the frames it has received.
#[cfg(feature = "net")]
struct Card<'n, N>(&'n mut N, Guest);

#[cfg(feature = "net")]
type Front = xen_netfront::NetFront<'static, &'static Kernel>;

#[cfg(feature = "net")]
impl<N: Network<Nic>> Device<'static, &'static Kernel> for Card<'_, N> {
    type Begun = <Front as Device<'static, &'static Kernel>>::Begun;

    fn quiesce(&mut self, xs: &mut Xs) {
        self.0.take_in(self.1.now());
        self.0.nic().front().quiesce(xs);
    }

    fn begin(&mut self, xs: &mut Xs, deadline: Duration) -> Self::Begun {
        self.0.nic().front().begin(xs, deadline)
    }

    fn finish(&mut self, begun: Self::Begun, xs: &mut Xs, deadline: Duration) -> usize {
        self.0.nic().front().finish(begun, xs, deadline)
    }

    fn go_on(&mut self) {
        self.0.nic().front().go_on();
    }
}

#[cfg(feature = "net")]
fn net_of<N>(net: Option<&mut N>, guest: Guest) -> Option<Card<'_, N>> {
    net.map(|net| Card(net, guest))
}

#[cfg(not(feature = "net"))]
fn net_of<N>(_: Option<&mut N>, _: Guest) {}

#[cfg(feature = "disk")]
fn disk_of(disk: Option<&Disk>) -> Option<&Disk> {
    disk
}

#[cfg(not(feature = "disk"))]
fn disk_of(_: Option<&Disk>) {}
