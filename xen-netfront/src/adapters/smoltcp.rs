//! `smoltcp::phy::Device` (features `smoltcp-v0-14` and `smoltcp-v0-13`, of which both may be on).
//!
//! TCP's checksums are left to the backend when a frame is sent, and are verified here, not by the stack, when the
//! backend does not vouch for a frame that arrived. Consecutive segments of a stream, also where others' are between
//! them, go to the backend as one large packet; with the feature `smoltcp-v0-14-segmentation` the stack does not cut the stream
//! at all in IPv4, which costs it less. It gets what arrives as one packet in one piece, if that was agreed on and the buffer is large
//! enough.
//! All other checksums are the stack's.

use core::fmt;
use core::future::poll_fn;
use core::task::Poll;

use xen_hypercall::Platform;

use super::coalesce::Coalescer;
#[cfg(feature = "smoltcp-v0-14-segmentation")]
use super::stack::has_room_for_large;
use super::stack::{Stack, has_room, next};
pub use super::{Hold, ToSend};
use crate::wake::Sides;
use crate::{Card, Error, NetFront};

/// A network device with two private buffers: the stack reads and writes these, the backend never sees them change.
///
/// It has the device itself, or the [place](Card) of one ([`CardDevice`]).
pub struct SmoltcpDevice<'x, P: Platform, B, const QUEUES: usize = 1, F = NetFront<'x, P, QUEUES>> {
    stack: Stack<'x, P, B, QUEUES, F>,
    /// There was no room when the stack asked for some.
    lacks: bool,
}

/// The device that is in a place, for a stack: while there is none, nothing arrives and there is no room for frames.
pub type CardDevice<'c, 'x, P, B, const QUEUES: usize = 1> =
    SmoltcpDevice<'x, P, B, QUEUES, &'c Card<'x, P, QUEUES>>;

/// Whether there is room for a frame, beside what waits.
type Room<'x, P, const QUEUES: usize> = fn(&mut NetFront<'x, P, QUEUES>, &Coalescer) -> bool;

impl<'x, P: Platform, B: AsRef<[u8]> + AsMut<[u8]>, const QUEUES: usize> SmoltcpDevice<'x, P, B, QUEUES> {
    /// Wraps a device. The buffers hold a frame each: one that arrived, and one that is to be sent, of the MTU and 14
    /// bytes at least. With [`FRAME_MAX`](crate::FRAME_MAX) bytes for frames that arrive, large ones can, if
    /// [`Config::receive`](crate::Config::receive) allows them. With as many for those that are sent, and the feature
    /// `smoltcp-v0-14-segmentation`, the stack sends large ones, if the backend cuts them.
    /// It asks for that once, when its `Interface` is made: after a [`reconnect`](NetFront::reconnect) to a backend that does not
    /// cut, they are cut here, which needs pages for all segments (`Config::tx_pages` of 64 or more) until it is made anew.
    pub fn new(front: NetFront<'x, P, QUEUES>, received: B, to_send: B) -> Self {
        Self { stack: Stack::new(front, received, to_send), lacks: false }
    }

    /// The device itself.
    pub fn front(&self) -> &NetFront<'x, P, QUEUES> {
        &self.stack.sender.hold
    }

    /// The device itself.
    pub fn front_mut(&mut self) -> &mut NetFront<'x, P, QUEUES> {
        // What else is sent must not come between.
        let _ = self.stack.sender.with(|front, coalescer| coalescer.push(front));
        &mut self.stack.sender.hold
    }

    /// The device again.
    pub fn into_inner(mut self) -> NetFront<'x, P, QUEUES> {
        let _ = self.stack.sender.with(|front, coalescer| coalescer.push(front));
        self.stack.sender.hold
    }
}

impl<'c, 'x, P: Platform, B: AsRef<[u8]> + AsMut<[u8]>, const QUEUES: usize>
    CardDevice<'c, 'x, P, B, QUEUES>
{
    /// Stands on the place of a device. The buffers are as for [`SmoltcpDevice::new`]. A task that has nothing to do
    /// waits by [`ready`](Self::ready).
    pub fn on(card: &'c Card<'x, P, QUEUES>, received: B, to_send: B) -> Self {
        Self { stack: Stack::new(card, received, to_send), lacks: false }
    }

    /// Waits until the stack has something to do: a frame has arrived, there is room that it lacked, or the link is not as it was
    /// `known`. Returns whether the link is up. What the stack has sent is shown to the backend first. A stack has deadlines of its
    /// own: the future may be dropped at any time.
    ///
    /// # Errors
    /// [`Error::Closed`]: the place was [closed](Card::close).
    pub async fn ready(&mut self, known: bool) -> Result<bool, Error> {
        // Without a device there is nothing to show.
        let _ = self.publish();
        let (card, lacks, enough) = (self.stack.sender.hold, self.lacks, self.criterion());
        let pending = &mut self.stack.sender.pending;
        let outcome = poll_fn(|cx| match card.poll_link(cx, known) {
            Poll::Ready(up) => Poll::Ready(Ok(up)),
            Poll::Pending => card.look(cx, Sides::Both, |front, stamp| {
                // A frame is taken only with room for the answer.
                let coalescer = pending.of(Some(stamp));
                let room = has_room(front, coalescer);
                Ok(((lacks && enough(front, coalescer)) || (room && front.has_frames()?)).then_some(known))
            }),
        });
        let outcome = outcome.await;
        self.lacks = false;
        outcome
    }
}

impl<'x, P, B, const QUEUES: usize, F> SmoltcpDevice<'x, P, B, QUEUES, F>
where
    P: Platform,
    B: AsRef<[u8]> + AsMut<[u8]>,
    F: Hold<'x, P, QUEUES>,
{
    /// Shows the backend what the stack has sent, and notifies it: to be called after the stack was polled. Only large
    /// packets go by themselves, when they are as long as they get; until then the last segments may wait for more.
    ///
    /// A stack that has more to send than there is room for can sleep until the device's next event, for which
    /// [`NetFront::arm`] asks.
    ///
    /// # Errors
    /// As [`NetFront::publish`]; [`Error::Closed`] also without a device.
    pub fn publish(&mut self) -> Result<(), Error> {
        self.stack.publish()
    }

    /// Frames that arrived with a wrong TCP checksum, and were dropped.
    pub fn wrong_checksums(&self) -> u64 {
        self.stack.wrong
    }

    fn next(&mut self) -> Option<usize> {
        let Stack { sender, received, wrong, .. } = &mut self.stack;
        sender.with(|front, coalescer| next(front, coalescer, received.as_mut(), wrong))?
    }

    fn transmit_room(&mut self) -> bool {
        let enough = self.criterion();
        let room = self.stack.sender.with(|front, coalescer| enough(front, coalescer)).unwrap_or(false);
        self.lacks |= !room;
        room
    }

    /// What says whether there is room for a frame that the stack sends by itself: a large one, if it may send such.
    fn criterion(&self) -> Room<'x, P, QUEUES> {
        #[cfg(feature = "smoltcp-v0-14-segmentation")]
        if self.stack.large().is_some() {
            return has_room_for_large;
        }
        has_room
    }
}

impl<P: Platform, B, const QUEUES: usize, F: fmt::Debug> fmt::Debug for SmoltcpDevice<'_, P, B, QUEUES, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SmoltcpDevice").field(&self.stack.sender.hold).finish()
    }
}

/// A frame that arrived.
#[derive(Debug)]
pub struct Received<'a>(&'a [u8]);

/// The traits of a version of smoltcp, which has no say about the rest. The blocks are what one has and the other has not.
macro_rules! device_of {
    ($feature:literal, $smoltcp:ident, { $($token:item)* }, |$device:ident, $capabilities:ident| $more:block) => {
        #[cfg(feature = $feature)]
        const _: () = {
            use $smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
            use $smoltcp::time::Instant;

            impl RxToken for Received<'_> {
                fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
                    f(self.0)
                }
            }

            impl<'x, P: Platform, const QUEUES: usize, H: Hold<'x, P, QUEUES>> TxToken
                for ToSend<'_, 'x, P, QUEUES, H>
            {
                fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
                    self.fill(len, f)
                }

                $($token)*
            }

            impl<'x, P, B, const QUEUES: usize, H> Device for SmoltcpDevice<'x, P, B, QUEUES, H>
            where
                P: Platform,
                B: AsRef<[u8]> + AsMut<[u8]>,
                H: Hold<'x, P, QUEUES>,
            {
                type RxToken<'a>
                    = Received<'a>
                where
                    Self: 'a;
                type TxToken<'a>
                    = ToSend<'a, 'x, P, QUEUES, H>
                where
                    Self: 'a;

                fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
                    let len = self.next()?;
                    let (frame, to_send) = self.stack.received(len)?;
                    Some((Received(frame), to_send))
                }

                fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
                    self.transmit_room().then(|| self.stack.token())
                }

                fn capabilities(&self) -> DeviceCapabilities {
                    let mut $capabilities = DeviceCapabilities::default();
                    $capabilities.medium = Medium::Ethernet;
                    $capabilities.max_transmission_unit = self.stack.longest();
                    $capabilities.checksum.tcp = Checksum::None;
                    let $device = self;
                    $more
                    $capabilities
                }
            }
        };
    };
}

device_of!("smoltcp-v0-13", smoltcp_v0_13, {}, |_device, capabilities| {});

device_of!(
    "smoltcp-v0-14",
    smoltcp,
    {
        #[cfg(feature = "smoltcp-v0-14-segmentation")]
        fn set_meta(&mut self, meta: smoltcp::phy::PacketMeta) {
            self.size = meta.segmentation_offload_size;
        }
    },
    |_device, capabilities| {
        #[cfg(feature = "smoltcp-v0-14-segmentation")]
        {
            capabilities.segmentation.tcpv4 = _device.stack.large();
        }
    }
);
