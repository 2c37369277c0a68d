//! `smoltcp::phy::Device` (feature `smoltcp-v0-14`).
//!
//! TCP's checksums are left to the backend when a frame is sent, and are verified here, not by the stack, when the
//! backend does not vouch for a frame that arrived. Consecutive segments of a stream, also where others' are between
//! them, go to the backend as one large packet; with the feature `smoltcp-v0-14-segmentation` the stack does not cut the stream
//! at all in IPv4, which costs it less. It gets what arrives as one packet in one piece, if that was agreed on and the buffer is large
//! enough.
//! All other checksums are the stack's.

use core::fmt;

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use xen_hypercall::Platform;

use super::coalesce::Coalescer;
use super::vet::vet;
use crate::packet::ETHERNET;
use crate::{Error, Features, NetFront, RxMeta};
#[cfg(feature = "smoltcp-v0-14-segmentation")]
use crate::{Gso, GsoKind, TxMeta, front::LARGE};

/// A network device with two private buffers: the stack reads and writes these, the backend never sees them change.
pub struct SmoltcpDevice<'x, P: Platform, B, const QUEUES: usize = 1> {
    front: NetFront<'x, P, QUEUES>,
    received: B,
    to_send: B,
    coalescer: Coalescer,
    /// Frames that arrived with a wrong checksum.
    wrong: u64,
}

impl<'x, P: Platform, B: AsRef<[u8]> + AsMut<[u8]>, const QUEUES: usize> SmoltcpDevice<'x, P, B, QUEUES> {
    /// Wraps a device. The buffers hold a frame each: one that arrived, and one that is to be sent, of the MTU and 14
    /// bytes at least. With [`FRAME_MAX`](crate::FRAME_MAX) bytes for frames that arrive, large ones can, if
    /// [`Config::receive`](crate::Config::receive) allows them. With as many for those that are sent, and the feature
    /// `smoltcp-v0-14-segmentation`, the stack sends large ones, if the backend cuts them.
    /// It asks for that once, when its `Interface` is made: after a [`reconnect`](NetFront::reconnect) to a backend that does not
    /// cut, they are cut here, which needs pages for all segments (`Config::tx_pages` of 64 or more) until it is made anew.
    pub fn new(front: NetFront<'x, P, QUEUES>, received: B, to_send: B) -> Self {
        Self { front, received, to_send, coalescer: Coalescer::default(), wrong: 0 }
    }

    /// Shows the backend what the stack has sent, and notifies it: to be called after the stack was polled. Only large
    /// packets go by themselves, when they are as long as they get; until then the last segments may wait for more.
    ///
    /// A stack that has more to send than there is room for can sleep until the device's next event, for which
    /// [`NetFront::arm`] asks.
    ///
    /// # Errors
    /// As [`NetFront::publish`].
    pub fn publish(&mut self) -> Result<(), Error> {
        let pushed = self.coalescer.push(&mut self.front);
        self.front.publish().and(pushed)
    }

    /// The device itself.
    pub fn front(&self) -> &NetFront<'x, P, QUEUES> {
        &self.front
    }

    /// The device itself.
    pub fn front_mut(&mut self) -> &mut NetFront<'x, P, QUEUES> {
        // What else is sent must not come between.
        let _ = self.coalescer.push(&mut self.front);
        &mut self.front
    }

    /// The device again.
    pub fn into_inner(mut self) -> NetFront<'x, P, QUEUES> {
        let _ = self.coalescer.push(&mut self.front);
        self.front
    }

    /// Frames that arrived with a wrong TCP checksum, and were dropped.
    pub fn wrong_checksums(&self) -> u64 {
        self.wrong
    }

    /// Whether the stack may send a frame: there are slots for what waits, and pages and slots for one more, with its
    /// extra information.
    fn has_room(&mut self) -> bool {
        let coalesces = self.front.features().intersects(Features::GSO_V4 | Features::GSO_V6);
        let wanted = if coalesces { 3 } else { 1 };
        self.front.has_room_beside(self.coalescer.slots(), wanted)
    }

    /// The same for a large one, which the stack may send by itself. It sends none in answer to a frame.
    fn has_room_for_large(&mut self) -> bool {
        #[cfg(feature = "smoltcp-v0-14-segmentation")]
        if self.large().is_some() {
            return self.front.has_room_beside(self.coalescer.slots(), LARGE);
        }
        self.has_room()
    }

    /// The longest frame that is not large.
    fn longest(&self) -> usize {
        (self.front.mtu() as usize + ETHERNET).min(self.to_send.as_ref().len())
    }

    /// The longest frame that the stack may have cut: as many whole segments as the buffer has room for. None if the backend
    /// does not cut, or there is no room for more than one. In IPv4 alone: smoltcp 0.14.0 drops those of IPv6.
    #[cfg(feature = "smoltcp-v0-14-segmentation")]
    fn large(&self) -> Option<core::num::NonZeroUsize> {
        const HEADERS: usize = ETHERNET + 40;
        let most = crate::FRAME_MAX.min(self.to_send.as_ref().len());
        let segment = self.longest().checked_sub(HEADERS)?;
        let segments = most.checked_sub(HEADERS)?.checked_div(segment).filter(|count| *count > 1)?;
        let cuts = self.front.features().contains(Features::GSO_V4);
        if cuts { core::num::NonZeroUsize::new(HEADERS + segments * segment) } else { None }
    }

    fn check(&mut self, meta: RxMeta) -> bool {
        let frame = self.received.as_mut().get_mut(..meta.len);
        frame.is_some_and(|frame| vet(frame, meta.checksum))
    }
}

impl<P: Platform, B, const QUEUES: usize> fmt::Debug for SmoltcpDevice<'_, P, B, QUEUES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SmoltcpDevice").field(&self.front).finish()
    }
}

/// A frame that arrived.
#[derive(Debug)]
pub struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Room for a frame to send.
pub struct ToSend<'a, 'x, P: Platform, const QUEUES: usize = 1> {
    front: &'a mut NetFront<'x, P, QUEUES>,
    coalescer: &'a mut Coalescer,
    frame: &'a mut [u8],
    /// How long the segments are that it is to be cut in.
    #[cfg(feature = "smoltcp-v0-14-segmentation")]
    size: Option<core::num::NonZeroU16>,
}

impl<'a, 'x, P: Platform, const QUEUES: usize> ToSend<'a, 'x, P, QUEUES> {
    fn new(
        front: &'a mut NetFront<'x, P, QUEUES>,
        coalescer: &'a mut Coalescer,
        frame: &'a mut [u8],
    ) -> Self {
        Self {
            front,
            coalescer,
            frame,
            #[cfg(feature = "smoltcp-v0-14-segmentation")]
            size: None,
        }
    }

    fn send(self, len: usize) -> Result<(), Error> {
        let Self { front, coalescer, frame, .. } = self;
        let frame = frame.get(..len).unwrap_or_default();
        #[cfg(feature = "smoltcp-v0-14-segmentation")]
        if let Some(size) = self.size {
            // What was sent before it goes first.
            coalescer.push(front)?;
            let gso = Some(Gso { kind: GsoKind::TcpV4, size: size.get() });
            front.transmit_with(&[frame], TxMeta { checksum: crate::Checksum::Blank, gso })?;
            // The backend can be at work on it while the next one is made.
            return front.show_sent(frame);
        }
        coalescer.send(front, frame)
    }
}

impl<P: Platform, const QUEUES: usize> fmt::Debug for ToSend<'_, '_, P, QUEUES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ToSend")
    }
}

impl<P: Platform, const QUEUES: usize> TxToken for ToSend<'_, '_, P, QUEUES> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let len = len.min(self.frame.len());
        let result = f(&mut self.frame[..len]);
        // There was room when the token was made. A device that broke since loses frames, as networks do.
        let _ = self.send(len);
        result
    }

    #[cfg(feature = "smoltcp-v0-14-segmentation")]
    fn set_meta(&mut self, meta: smoltcp::phy::PacketMeta) {
        self.size = meta.segmentation_offload_size;
    }
}

impl<'x, P: Platform, B: AsRef<[u8]> + AsMut<[u8]>, const QUEUES: usize> Device
    for SmoltcpDevice<'x, P, B, QUEUES>
{
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = ToSend<'a, 'x, P, QUEUES>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        // The stack may answer at once, so there must be room for that.
        if !self.has_room() {
            return None;
        }
        // Ends: the device has no more frames than its rings have slots.
        let meta = loop {
            let meta = self.front.receive_with(self.received.as_mut()).ok()??;
            if self.check(meta) {
                break meta;
            }
            self.wrong += 1;
        };
        let received = Received(self.received.as_ref().get(..meta.len)?);
        let Self { front, coalescer, to_send, .. } = self;
        Some((received, ToSend::new(front, coalescer, to_send.as_mut())))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        let room = self.has_room_for_large();
        let Self { front, coalescer, to_send, .. } = self;
        room.then_some(ToSend::new(front, coalescer, to_send.as_mut()))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.longest();
        capabilities.checksum.tcp = Checksum::None;
        #[cfg(feature = "smoltcp-v0-14-segmentation")]
        {
            capabilities.segmentation.tcpv4 = self.large();
        }
        capabilities
    }
}
