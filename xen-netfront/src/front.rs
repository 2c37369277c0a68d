//! A connected network device.

use core::fmt;
use core::task::{Context, Poll};
use core::time::Duration;

use xen_evtchn::Channel;
use xen_gnttab::GrantedPage;
use xen_hypercall::{DomId, PAGE_SIZE, Platform, Wait};
use xen_ring::{Front, RingError};
use xen_xenstore::Xenstore;
use xen_xenstore::wire::Refusal;
use xen_xenstore::xenbus::{Connected, Frontend, XenbusState};

use crate::abi::{Rx, RxFlags, RxRequest, RxResponse, Tx, TxRequest};
use crate::error::Violation;
use crate::pool::Pool;
use crate::{Error, FRAME_MAX, Mac, Stats};

/// How the device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum State {
    /// At work.
    Connected,
    /// The backend has ended the device, or is gone.
    Closed,
    /// The backend broke the protocol.
    Broken(Violation),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("connected"),
            Self::Closed => f.write_str("closed by the backend"),
            Self::Broken(violation) => write!(f, "broken: {violation}"),
        }
    }
}

type Ring<'x, P, T> = Front<T, GrantedPage<'x, P>>;

/// A network device from the guest's side: frames out, frames in.
///
/// All pages are shared once, when the device is connected, and hold nothing but frames; a frame is copied in or out
/// once. Nothing is allocated afterwards, and nothing blocks.
pub struct NetFront<'x, P: Platform> {
    device: Frontend<Connected>,
    channel: Channel<'x, P>,
    tx: Ring<'x, P, Tx>,
    tx_pool: Pool<'x, P>,
    rx: Ring<'x, P, Rx>,
    rx_pool: Pool<'x, P>,
    /// Within the parts of a frame that is being dropped.
    in_parts: bool,
    mac: Mac,
    mtu: u32,
    state: State,
    stats: Stats,
}

impl<'x, P: Platform> NetFront<'x, P> {
    pub(crate) fn new(
        device: Frontend<Connected>,
        channel: Channel<'x, P>,
        (tx, tx_pool): (Ring<'x, P, Tx>, Pool<'x, P>),
        (rx, rx_pool): (Ring<'x, P, Rx>, Pool<'x, P>),
        mac: Mac,
        mtu: u32,
    ) -> Self {
        let (state, stats) = (State::Connected, Stats::default());
        Self { device, channel, tx, tx_pool, rx, rx_pool, in_parts: false, mac, mtu, state, stats }
    }

    /// Its hardware address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The most bytes that a frame carries after its 14 bytes of header.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// How the device is.
    pub fn state(&self) -> State {
        self.state
    }

    /// What passed so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The domain that the backend is in.
    pub fn backend(&self) -> DomId {
        self.device.backend_id()
    }

    /// The device's event channel.
    pub fn channel(&self) -> &Channel<'x, P> {
        &self.channel
    }

    /// How many frames can be sent at this moment.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Broken`].
    pub fn can_transmit(&mut self) -> Result<usize, Error> {
        self.check()?;
        if self.tx_pool.available() == 0 {
            self.reap()?;
        }
        Ok(self.tx_pool.available())
    }

    /// Copies a frame into a shared page and queues it; [`flush`](Self::flush) tells the backend.
    ///
    /// # Errors
    /// [`Error::Full`]; [`Error::Length`]; [`Error::Closed`], [`Error::Broken`].
    pub fn transmit(&mut self, frame: &[u8]) -> Result<(), Error> {
        if self.can_transmit()? == 0 {
            return Err(Error::Full);
        }
        let size =
            u16::try_from(frame.len()).ok().filter(|size| (1..=FRAME_MAX).contains(&usize::from(*size)));
        let size = size.ok_or(Error::Length(frame.len()))?;
        let (id, page) = self.tx_pool.next().ok_or(Error::Full)?;
        page.write_bytes(0, frame).map_err(|_| Error::Length(frame.len()))?;
        let request = TxRequest { gref: page.gref().0, offset: 0, flags: 0, id, size };
        match self.tx.push(&request) {
            Ok(_) => self.tx_pool.take(),
            Err(error) => return Err(self.ring_error(error)),
        }
        self.stats.tx_frames += 1;
        self.stats.tx_bytes += u64::from(size);
        Ok(())
    }

    /// Takes the pages back that the backend has sent.
    fn reap(&mut self) -> Result<(), Error> {
        loop {
            let response = match self.tx.pop() {
                Ok(Some(response)) => response,
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.ring_error(error)),
            };
            if self.tx_pool.put_back(response.id).is_none() {
                return Err(self.broken(Violation::Id(response.id)));
            }
            self.stats.tx_errors += u64::from(response.status < 0);
        }
    }

    /// Copies the next frame that arrived to the start of `buf`, and answers its length; none when there is none.
    /// A buffer of [`FRAME_MAX`] bytes holds every frame; one that does not fit is dropped and counted.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Broken`].
    pub fn receive(&mut self, buf: &mut [u8]) -> Result<Option<usize>, Error> {
        self.check()?;
        loop {
            let response = match self.rx.pop() {
                Ok(Some(response)) => response,
                Ok(None) => return Ok(None),
                Err(error) => return Err(self.ring_error(error)),
            };
            let taken = self.take_frame(response, buf);
            if let Err(Error::Broken(violation)) = taken {
                return Err(self.broken(violation));
            }
            self.refill()?;
            if let Ok(len) = taken {
                self.stats.rx_frames += 1;
                self.stats.rx_bytes += len as u64;
                return Ok(Some(len));
            }
            self.stats.rx_dropped += 1;
        }
    }

    /// Looks at one response, a private copy, and copies its frame out. [`Error::Length`] for what is to be dropped.
    fn take_frame(&mut self, response: RxResponse, buf: &mut [u8]) -> Result<usize, Error> {
        let RxResponse { id, offset, flags, status } = response;
        let page = self.rx_pool.put_back(id).ok_or(Error::Broken(Violation::Id(id)))?;
        let kind = RxFlags::from_bits_retain(flags);
        if kind.contains(RxFlags::EXTRA_INFO) {
            // Not agreed on: the next slot would not be a response at all.
            return Err(Error::Broken(Violation::Flags(flags)));
        }
        let more = kind.contains(RxFlags::MORE_DATA);
        let part = core::mem::replace(&mut self.in_parts, more) || more;
        let len = usize::try_from(status).map_err(|_| Error::Length(0))?;
        if usize::from(offset) + len > PAGE_SIZE {
            return Err(Error::Broken(Violation::Outside(offset, status)));
        }
        let to = buf.get_mut(..len).filter(|_| len > 0 && !part && !kind.contains(RxFlags::CSUM_BLANK));
        let to = to.ok_or(Error::Length(len))?;
        page.read_bytes(usize::from(offset), to).map_err(|_| Error::Length(len))?;
        Ok(len)
    }

    /// Gives the backend every page to receive into.
    pub(crate) fn refill(&mut self) -> Result<(), Error> {
        while self.rx.free() > 0 {
            let Some((id, page)) = self.rx_pool.next() else { return Ok(()) };
            let request = RxRequest { id, pad: 0, gref: page.gref().0 };
            match self.rx.push(&request) {
                Ok(_) => self.rx_pool.take(),
                Err(error) => return Err(self.ring_error(error)),
            }
        }
        Ok(())
    }

    /// Shows the backend what was queued in both directions, and notifies it once if it asked for that.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Broken`], [`Error::Event`].
    pub fn flush(&mut self) -> Result<(), Error> {
        self.check()?;
        let published = self.tx.publish().and_then(|tx| Ok(self.rx.publish()? || tx));
        match published {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.stats.notifications += 1;
                Ok(self.channel.notify()?)
            }
            Err(error) => Err(self.ring_error(error)),
        }
    }

    /// Asks for an event at the next frame and, when no page for sending is left, at the next one that comes back.
    /// Answers whether there is something to do at once: then no event will come for it, and sleeping would be wrong.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Broken`].
    pub fn arm(&mut self) -> Result<bool, Error> {
        self.check()?;
        let mut ready = self.rx.arm();
        if self.tx_pool.available() == 0 {
            ready = ready.and_then(|ready| Ok(self.tx.arm_after(self.tx.in_flight() / 2)? || ready));
        }
        ready.map_err(|error| self.ring_error(error))
    }

    /// Ready when a frame has arrived or the device is not at work any more; otherwise wakes the task then.
    pub fn poll_receivable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.arm() != Ok(false) {
                return Poll::Ready(());
            }
            if self.channel.poll_event(cx).is_pending() {
                // Armed before the waker was left: look once more.
                return if self.arm() == Ok(false) { Poll::Pending } else { Poll::Ready(()) };
            }
        }
    }

    /// Follows the backend: when it ends the device, so do we. Cheap when nothing has happened; to be called when
    /// xenstore has an event.
    ///
    /// # Errors
    /// [`Error::Store`] when the connection to xenstore is of no use any more.
    pub fn service(&mut self, xs: &mut Xenstore<'x, P>) -> Result<State, Error>
    where
        P: Wait,
    {
        let ending = match self.device.is_closing(xs) {
            // The node is gone, and what is above it was never ours to read.
            Err(xen_xenstore::Error::Refused(_, Refusal::AccessDenied)) => true,
            ending => ending?,
        };
        if ending && self.state != State::Closed {
            self.state = State::Closed;
            self.device.switch(xs, XenbusState::CLOSED)?;
        }
        Ok(self.state)
    }

    /// Ends the device in good order: the backend lets go, the pages come back. Pages that it holds on to stay in the
    /// grant table's quarantine.
    ///
    /// # Errors
    /// [`Error::Store`] when the backend did not close by `deadline`; the device is closed nevertheless.
    pub fn close(self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> Result<(), Error>
    where
        P: Wait,
    {
        match self.state {
            State::Closed => Ok(self.device.abandon(xs)?),
            _ => Ok(self.device.close(xs, deadline)?),
        }
    }

    fn check(&self) -> Result<(), Error> {
        match self.state {
            State::Connected => Ok(()),
            State::Closed => Err(Error::Closed),
            State::Broken(violation) => Err(Error::Broken(violation)),
        }
    }

    fn broken(&mut self, violation: Violation) -> Error {
        self.state = State::Broken(violation);
        Error::Broken(violation)
    }

    fn ring_error(&mut self, error: RingError) -> Error {
        match error {
            RingError::Full => Error::Full,
            error => self.broken(Violation::Ring(error)),
        }
    }
}

impl<P: Platform> fmt::Debug for NetFront<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetFront")
            .field("mac", &self.mac)
            .field("state", &self.state)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
