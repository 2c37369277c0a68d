//! Consoles beside the first one, which are devices like others (`docs/misc/console.txt`).

use core::fmt;
use core::time::Duration;

use xen_evtchn::EventChannels;
use xen_gnttab::{Access, GrantTable};
use xen_hypercall::{Platform, Wait};
use xen_xenstore::xenbus::{BackendReady, Connected, Frontend, Published, XenbusState};
use xen_xenstore::{Xenstore, xenbus};

use crate::page::ConsolePage;
use crate::{Console, Error};

/// A console with a number: `device/console/<index>` in xenstore. The first console of a domain, number 0, is none of
/// these but [`Console::new`].
///
/// The toolstack's configuration adds them (`channel` and `serial` in `xl.cfg`); QEMU serves them.
pub struct SecondaryConsole<'x, P: Platform> {
    console: Console<'x, P>,
    device: Frontend<Connected>,
}

impl<'x, P: Platform + Wait> SecondaryConsole<'x, P> {
    /// Connects console `index`, waiting for its backend until `deadline`, a time of the platform's clock.
    ///
    /// # Errors
    /// [`Error::NoConsole`] for number 0; [`Error::Store`] when there is no such console or its backend does not
    /// come; [`Error::Grant`] and [`Error::Event`] when resources are short. Nothing is left behind.
    pub fn connect(
        xs: &mut Xenstore<'x, P>,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        index: u32,
        deadline: Duration,
    ) -> Result<Self, Error> {
        if index == 0 {
            return Err(Error::NoConsole);
        }
        let device = Frontend::open(xs, "console", index, deadline)?.wait_for_backend(xs, deadline)?;
        let (console, gref) = match share(&device, events, grants) {
            Ok(shared) => shared,
            Err(error) => {
                // The first error says more than one on the way out.
                let _ = device.abandon(xs);
                return Err(error);
            }
        };
        let port = console.channel().port();
        let device: Frontend<Published> =
            device.publish(xs, XenbusState::INITIALISED, |transaction, path| {
                transaction.write_display(&path.join("ring-ref")?, gref)?;
                transaction.write_display(&path.join("port")?, port.0)
            })?;
        let device = device.wait_connected(xs, deadline)?;
        device.switch(xs, XenbusState::CONNECTED)?;
        Ok(Self { console, device })
    }

    /// Whether the backend wants the console to end, or is gone. Cheap unless its state has changed.
    ///
    /// # Errors
    /// When xenstore cannot be asked.
    pub fn is_closing(&self, xs: &mut Xenstore<'x, P>) -> Result<bool, Error> {
        Ok(self.device.is_closing(xs)?)
    }

    /// Ends the console; what it wrote and nobody took is lost. The page goes to the grant table's quarantine when
    /// the backend keeps it.
    ///
    /// # Errors
    /// [`Error::Store`] when the backend did not follow by `deadline`; the console is closed all the same.
    pub fn close(self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> Result<(), Error> {
        let Self { console, device } = self;
        let closed = device.close(xs, deadline);
        // Only now: before, the backend had every right to the page.
        drop(console);
        Ok(closed?)
    }
}

impl<'x, P: Platform> SecondaryConsole<'x, P> {
    /// The console itself.
    pub fn console(&mut self) -> &mut Console<'x, P> {
        &mut self.console
    }

    /// The device's number and paths.
    pub fn device(&self) -> &Frontend<xenbus::Connected> {
        &self.device
    }
}

fn share<'x, P: Platform>(
    device: &Frontend<BackendReady>,
    events: &'x EventChannels<P>,
    grants: &'x GrantTable<P>,
) -> Result<(Console<'x, P>, u32), Error> {
    let backend = device.backend_id();
    let page = grants.share(backend, Access::ReadWrite)?;
    let gref = page.gref().0;
    Ok((Console::on(ConsolePage::Granted(page), events.alloc_unbound(backend)?)?, gref))
}

impl<P: Platform> fmt::Debug for SecondaryConsole<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecondaryConsole")
            .field("console", &self.console)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}
