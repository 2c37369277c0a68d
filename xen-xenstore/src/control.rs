//! What the toolstack asks of the whole domain, by the node `control/shutdown`.

use xen_hypercall::{Platform, Wait};

use crate::link::Sink;
use crate::wire::Operation;
use crate::{Error, Watch, Xenstore};

const NODE: &str = "control/shutdown";
/// The nodes that tell the toolstack which requests are obeyed.
const FEATURES: [&[u8]; 2] = [b"control/feature-poweroff", b"control/feature-reboot"];

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
        let watch = xs.take_place(NODE)?;
        let mut watched = Ok(());
        // Some toolstacks keep the directory to themselves, and refuse the rest; requests still arrive.
        let sink: &mut Sink<'_> = &mut |tag, answer| {
            if tag == 0 {
                watched = answer.map(drop);
            }
        };
        xs.link.give_up();
        let mut asked = xs.post_watch(watch, NODE, 0, sink);
        for feature in FEATURES {
            asked = asked.and_then(|()| xs.post(Operation::WRITE, 0, &[feature, b"\0", b"1"], 1, sink));
        }
        let asked = asked.and_then(|()| xs.settle(sink));
        if let Err(error) = asked.and(watched) {
            xs.give_watch_up(watch, error);
            return Err(error);
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
    // Most of the time there is none, as when the watch fires at its beginning.
    if request(xs.read(NODE))?.is_none() {
        return Ok(None);
    }
    xs.transaction(|transaction| {
        let request = request(transaction.read(NODE))?;
        if request.is_some() {
            transaction.write(NODE, b"")?;
        }
        Ok(request)
    })
}

/// What a node's value asks for.
fn request(value: Result<&[u8], Error>) -> Result<Option<Request>, Error> {
    Ok(Some(match value {
        Ok(b"poweroff") => Request::PowerOff,
        Ok(b"halt") => Request::Halt,
        Ok(b"reboot") => Request::Reboot,
        Ok(b"suspend") => Request::Suspend,
        Ok(b"crash") => Request::Crash,
        Ok(_) => return Ok(None),
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error),
    }))
}
