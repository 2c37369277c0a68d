//! What every driver is given: event channels, grants, xenstore.

use alloc::boxed::Box;
use core::time::Duration;

use check_report::{Failure, ensure};
use xen_blkfront::BlkFront;
use xen_evtchn::{Deadline, EventChannels};
use xen_gnttab::GrantTable;
use xen_hypercall::Wait;
use xen_rt::suspend::{Device, Outcome};
use xen_rt::{Guest, Kernel};
use xen_xenstore::Xenstore;
use xen_xenstore::control::{Request, ShutdownWatch};

pub(crate) type Xen = &'static Kernel;
pub(crate) type Events = &'static EventChannels<Xen>;
pub(crate) type Grants = &'static GrantTable<Xen>;

/// How long a backend, or dom0's script, may take for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) guest: Guest,
    /// Made when it is needed.
    requests: Option<ShutdownWatch>,
    pub(crate) kernel: Xen,
    pub(crate) events: Events,
    pub(crate) grants: Grants,
    pub(crate) xs: Xenstore<'static, Xen>,
}

impl Place {
    /// Everything in it lives as long as the domain.
    pub(crate) fn new(guest: Guest) -> Result<Self, Failure> {
        let events = guest.events();
        let grants: Grants = Box::leak(Box::new(GrantTable::new(guest.domain())?));
        let xs = Xenstore::new(events)?;
        Ok(Self { guest, requests: None, kernel: guest.kernel(), events, grants, xs })
    }

    /// Takes a disk's responses; if there is none yet, waits for one more than `skip`.
    pub(crate) fn response(&self, disk: &mut BlkFront<'static, Xen>, skip: u32) -> Result<(), Failure> {
        let mut deadline = Deadline::new(self.soon());
        loop {
            let seen = self.events.seq();
            if disk.poll()? > 0 {
                return Ok(());
            }
            let there = disk.arm_after(skip);
            let until = deadline.until(self.kernel.now());
            ensure!(until.is_some(), "the backend does not answer");
            if !there {
                self.events.wait_since(seen, until);
            }
        }
    }

    /// Whether dom0 asks for a suspend.
    pub(crate) fn is_asked(&mut self) -> Result<bool, Failure> {
        let Self { requests, xs, .. } = self;
        let requests = match requests {
            Some(requests) => requests,
            None => requests.insert(ShutdownWatch::new(xs, &[Request::Suspend])?),
        };
        Ok(requests.poll(xs)? == Some(Request::Suspend))
    }

    /// Suspends the domain, as it was asked for, with these devices.
    pub(crate) fn suspend<D: Device<'static, Xen>>(&mut self, devices: &mut D) -> Result<Outcome, Failure> {
        let (mut grants, requests) = (self.grants, self.requests.as_ref());
        Ok(self.guest.suspend(&mut self.xs, requests, &mut [&mut grants], devices, PATIENCE)?)
    }

    /// What time it is.
    pub(crate) fn now(&self) -> Duration {
        self.kernel.now()
    }

    /// A deadline for what takes dom0 longer.
    pub(crate) fn later(&self) -> Duration {
        self.kernel.now() + 10 * PATIENCE
    }

    /// A deadline from now on.
    pub(crate) fn soon(&self) -> Duration {
        self.kernel.now() + PATIENCE
    }
}
