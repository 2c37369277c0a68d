//! The domain is saved, restored, migrated.

use alloc::boxed::Box;

use webserver::report::Report;
use xen_hypercall::Restore;
use xen_hypercall::sched::Resumed;
use xen_rt::Guest;
use xen_xenstore::Xenstore;
use xen_xenstore::control::ShutdownWatch;

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
    pub(crate) fn run(
        &mut self,
        xs: &mut Xenstore<'static, &'static Kernel>,
        request: &ShutdownWatch,
        nic: Option<&mut Nic>,
        disk: Option<&Disk>,
    ) {
        let devices = &mut (nic_of(nic), disk_of(disk));
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

#[cfg(feature = "net")]
fn nic_of(nic: Option<&mut Nic>) -> Option<&mut xen_netfront::NetFront<'static, &'static Kernel>> {
    nic.map(Nic::front)
}

#[cfg(not(feature = "net"))]
fn nic_of(_: Option<&mut Nic>) {}

#[cfg(feature = "disk")]
fn disk_of(disk: Option<&Disk>) -> Option<&Disk> {
    disk
}

#[cfg(not(feature = "disk"))]
fn disk_of(_: Option<&Disk>) {}
