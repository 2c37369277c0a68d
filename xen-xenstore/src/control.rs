//! What the toolstack asks of the whole domain, by the node `control/shutdown`.

use xen_hypercall::{Platform, Wait};

use crate::link::Sink;
use crate::wire::Operation;
use crate::{Error, Watch, Xenstore};

pub(crate) const NODE: &str = "control/shutdown";
/// The nodes that tell the toolstack which requests are obeyed (`docs/misc/xenstore-paths.pandoc` of Xen).
pub(crate) const FEATURES: [(Request, &[u8]); 3] = [
    (Request::PowerOff, b"control/feature-poweroff"),
    (Request::Reboot, b"control/feature-reboot"),
    (Request::Suspend, b"control/feature-suspend"),
];

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

impl Request {
    /// The word in the node. There is none before the request or after it was accepted.
    pub(crate) fn word(self) -> &'static [u8] {
        match self {
            Self::PowerOff => b"poweroff",
            Self::Halt => b"halt",
            Self::Reboot => b"reboot",
            Self::Suspend => b"suspend",
            Self::Crash => b"crash",
        }
    }
}

/// Watches for requests.
///
/// A request stays in its node until the guest [accepts](Self::accept) it. The toolstack waits for that, for a time: one that
/// sees no answer to `suspend` takes the request back, and the domain runs on.
#[derive(Debug)]
pub struct ShutdownWatch(Watch);

impl ShutdownWatch {
    /// Begins to watch, and tells the toolstack which requests the guest obeys: those in `obeys`, and none else, of
    /// [`PowerOff`](Request::PowerOff), [`Reboot`](Request::Reboot) and [`Suspend`](Request::Suspend).
    ///
    /// # Errors
    /// When xenstore refuses the watch.
    pub fn new<P: Platform + Wait>(xs: &mut Xenstore<'_, P>, obeys: &[Request]) -> Result<Self, Error> {
        let watch = xs.take_place(NODE)?;
        let mut watched = Ok(());
        // Some toolstacks keep the directory to themselves, and refuse the rest; requests still arrive.
        let sink: &mut Sink<'_> = &mut |tag, answer| {
            if tag == 0 {
                watched = answer.map(drop);
            }
        };
        xs.obeys = Some(FEATURES.map(|(request, _)| obeys.contains(&request)));
        xs.link.give_up();
        let asked = xs.post_watch(watch, NODE, 0, sink);
        let asked = asked.and_then(|()| xs.post_obeyed(sink)).and_then(|()| xs.settle(sink));
        if let Err(error) = asked.and(watched) {
            xs.give_watch_up(watch, error);
            // Nobody will see a request, so that none is announced in another domain.
            xs.obeys = None;
            return Err(error);
        }
        Ok(Self(watch))
    }

    /// The request that stands, if the node has been written since the last call. Words that are no request are ignored.
    ///
    /// Nothing is acknowledged: a guest that does as it is asked [accepts](Self::accept) the request first.
    ///
    /// # Errors
    /// When xenstore cannot be asked. The request, if there is one, is found by the next call.
    pub fn poll<P: Platform + Wait>(&self, xs: &mut Xenstore<'_, P>) -> Result<Option<Request>, Error> {
        if !xs.fired(&self.0)? {
            return Ok(None);
        }
        let result = request(xs.read(NODE));
        if result.is_err() {
            xs.link.watches.mark(self.0);
        }
        result
    }

    /// Acknowledges a request, which the guest then has to obey. Returns `false`, and does nothing, when the request does not
    /// stand any more: the toolstack took it back, or asks for something else, which [`poll`](Self::poll) returns.
    ///
    /// # Errors
    /// When xenstore cannot be asked, or refuses. After [`Error::TimedOut`] it is not known whether the toolstack has seen it
    /// accepted.
    pub fn accept<P: Platform + Wait>(
        &self,
        xs: &mut Xenstore<'_, P>,
        request: Request,
    ) -> Result<bool, Error> {
        let accepted = xs.transaction(|transaction| {
            let stands = match transaction.read(NODE) {
                Ok(word) => word == request.word(),
                Err(error) if error.is_not_found() => false,
                Err(error) => return Err(error),
            };
            if stands {
                transaction.write(NODE, b"")?;
            }
            Ok(stands)
        });
        if accepted != Ok(true) {
            // What is there instead, or still, is found by the next call.
            xs.link.watches.mark(self.0);
        }
        accepted
    }
}

impl<P: Platform + Wait> Xenstore<'_, P> {
    /// Tells the toolstack which requests the guest obeys, if somebody watches for them. Their answers have a tag that nothing else has.
    pub(crate) fn post_obeyed(&mut self, sink: &mut Sink<'_>) -> Result<(), Error> {
        let Some(obeys) = self.obeys else { return Ok(()) };
        FEATURES.iter().zip(obeys).try_for_each(|((_, feature), obeyed)| {
            let value: &[u8] = if obeyed { b"1" } else { b"0" };
            self.post(Operation::WRITE, 0, &[feature, b"\0", value], usize::MAX, sink)
        })
    }
}

/// What a node's value asks for.
pub(crate) fn request(value: Result<&[u8], Error>) -> Result<Option<Request>, Error> {
    const ALL: [Request; 5] =
        [Request::PowerOff, Request::Halt, Request::Reboot, Request::Suspend, Request::Crash];
    match value {
        Ok(word) => Ok(ALL.into_iter().find(|request| request.word() == word)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
