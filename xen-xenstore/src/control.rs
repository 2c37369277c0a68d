//! What the toolstack asks of the whole domain, by the node `control/shutdown`.

use xen_hypercall::{Platform, Wait};

use crate::{Error, Watch, Xenstore};

const NODE: &str = "control/shutdown";

/// A request of the toolstack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Request {
    /// Stop and stay off (`xl shutdown`).
    PowerOff,
    /// Stop and stay off, without switching the power off.
    Halt,
    /// Stop and start again (`xl reboot`).
    Reboot,
    /// Save the state (`xl save`, `xl migrate`).
    Suspend,
    /// Fail on purpose.
    Crash,
}

/// Watches for requests.
#[derive(Debug)]
pub struct ShutdownWatch(Watch);

impl ShutdownWatch {
    /// Begins to watch, and tells the toolstack which requests are obeyed.
    ///
    /// # Errors
    /// When xenstore refuses.
    pub fn new<P: Platform + Wait>(xs: &mut Xenstore<'_, P>) -> Result<Self, Error> {
        let watch = xs.watch(NODE)?;
        for feature in ["control/feature-poweroff", "control/feature-reboot"] {
            match xs.write(feature, b"1") {
                // Some toolstacks keep the directory to themselves; requests still arrive.
                Ok(()) | Err(Error::Refused(..)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self(watch))
    }

    /// The request that has arrived, if one has; it is acknowledged. Words that are no request are ignored.
    ///
    /// # Errors
    /// When xenstore cannot be asked. The request, if there is one, is found by the next call.
    pub fn poll<P: Platform + Wait>(&self, xs: &mut Xenstore<'_, P>) -> Result<Option<Request>, Error> {
        if !xs.fired(&self.0)? {
            return Ok(None);
        }
        let result = take_request(xs);
        if result.is_err() {
            xs.link.watches.mark(self.0);
        }
        result
    }
}

fn take_request<P: Platform + Wait>(xs: &mut Xenstore<'_, P>) -> Result<Option<Request>, Error> {
    xs.transaction(|transaction| {
        let request = match transaction.read(NODE) {
            Ok(b"poweroff") => Request::PowerOff,
            Ok(b"halt") => Request::Halt,
            Ok(b"reboot") => Request::Reboot,
            Ok(b"suspend") => Request::Suspend,
            Ok(b"crash") => Request::Crash,
            Ok(_) => return Ok(None),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        transaction.write(NODE, b"")?;
        Ok(Some(request))
    })
}
