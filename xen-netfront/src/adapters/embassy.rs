//! `embassy_net_driver::Driver` (feature `embassy-net-driver-v0-2`).
//!
//! TCP's checksums are left to the backend when a frame is sent, and are verified here when it does not vouch for one
//! that arrived. Frames go to the backend one by one, and a stream's segments are not put together to large packets as
//! for smoltcp: the driver is not told when the stack is done for the moment, so what it kept back to wait for more might
//! wait for ever, or cost the stack another turn for each stream.

use core::fmt;
use core::task::{Context, Poll};

use embassy_net_driver::{Capabilities, Checksum, Driver, HardwareAddress, LinkState, RxToken, TxToken};
use xen_hypercall::Platform;

use super::vet::vet;
use crate::packet::{ETHERNET, Packet, TCP};
use crate::{NetFront, TxMeta};

/// A network device with two private buffers: the stack reads and writes these, the backend never sees them change.
pub struct EmbassyDriver<'x, P: Platform, B, const QUEUES: usize = 1> {
    front: NetFront<'x, P, QUEUES>,
    received: B,
    to_send: B,
    /// Frames that arrived with a wrong checksum.
    wrong: u64,
}

impl<'x, P: Platform, B: AsRef<[u8]> + AsMut<[u8]>, const QUEUES: usize> EmbassyDriver<'x, P, B, QUEUES> {
    /// Wraps a device. The buffers hold a frame each: one that arrived, and one that is to be sent, of the MTU and 14
    /// bytes at least.
    pub fn new(front: NetFront<'x, P, QUEUES>, received: B, to_send: B) -> Self {
        Self { front, received, to_send, wrong: 0 }
    }

    /// The device itself.
    pub fn front(&self) -> &NetFront<'x, P, QUEUES> {
        &self.front
    }

    /// The device itself; a task calls its [`service`](NetFront::service) when xenstore has an event.
    pub fn front_mut(&mut self) -> &mut NetFront<'x, P, QUEUES> {
        &mut self.front
    }

    /// The device again.
    pub fn into_inner(self) -> NetFront<'x, P, QUEUES> {
        self.front
    }

    /// Frames that arrived with a wrong TCP checksum, and were dropped.
    pub fn wrong_checksums(&self) -> u64 {
        self.wrong
    }

    fn has_room(&mut self) -> bool {
        self.front.can_transmit().is_ok_and(|pages| pages > 0)
    }

    /// The length of the next frame that the stack may see.
    fn next(&mut self) -> Option<usize> {
        // Ends: the device has no more frames than its rings have slots.
        loop {
            let meta = self.front.receive_with(self.received.as_mut()).ok()??;
            let frame = self.received.as_mut().get_mut(..meta.len)?;
            if vet(frame, meta.checksum) {
                return Some(meta.len);
            }
            self.wrong += 1;
        }
    }

    /// Shows the backend what is queued, and leaves the task's waker. Whether to look again instead of waiting.
    fn look_again(&mut self, cx: &mut Context<'_>) -> bool {
        // A device that is not at work any more says so by its link.
        self.front.publish().is_ok() && self.front.poll_receivable(cx) == Poll::Ready(())
    }
}

impl<P: Platform, B, const QUEUES: usize> fmt::Debug for EmbassyDriver<'_, P, B, QUEUES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EmbassyDriver").field(&self.front).finish()
    }
}

/// A frame that arrived.
#[derive(Debug)]
pub struct Received<'a>(&'a mut [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Room for a frame to send.
pub struct ToSend<'a, 'x, P: Platform, const QUEUES: usize = 1> {
    front: &'a mut NetFront<'x, P, QUEUES>,
    frame: &'a mut [u8],
}

impl<P: Platform, const QUEUES: usize> fmt::Debug for ToSend<'_, '_, P, QUEUES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ToSend")
    }
}

impl<P: Platform, const QUEUES: usize> TxToken for ToSend<'_, '_, P, QUEUES> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let len = len.min(self.frame.len());
        let frame = &mut self.frame[..len];
        let result = f(frame);
        let mut meta = TxMeta::default();
        if Packet::parse(frame).is_some_and(|packet| packet.protocol == TCP) {
            meta.checksum = crate::Checksum::Blank;
        }
        // There was room when the token was made. A device that broke since loses frames, as networks do.
        let _ = self.front.transmit_with(&[frame], meta).and_then(|()| self.front.publish());
        result
    }
}

impl<'x, P: Platform, B: AsRef<[u8]> + AsMut<[u8]>, const QUEUES: usize> Driver
    for EmbassyDriver<'x, P, B, QUEUES>
{
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = ToSend<'a, 'x, P, QUEUES>
    where
        Self: 'a;

    fn receive(&mut self, cx: &mut Context<'_>) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        // The stack may answer at once, so there must be room for that.
        let mut found = if self.has_room() { self.next() } else { None };
        if found.is_none() && self.look_again(cx) {
            found = if self.has_room() { self.next() } else { None };
            if found.is_none() {
                // Something else happened, for which there was an event that is taken now.
                cx.waker().wake_by_ref();
            }
        }
        let received = Received(self.received.as_mut().get_mut(..found?)?);
        Some((received, ToSend { front: &mut self.front, frame: self.to_send.as_mut() }))
    }

    fn transmit(&mut self, cx: &mut Context<'_>) -> Option<Self::TxToken<'_>> {
        let room = self.has_room() || (self.look_again(cx) && self.has_room());
        let Self { front, to_send, .. } = self;
        room.then_some(ToSend { front, frame: to_send.as_mut() })
    }

    fn link_state(&mut self, _: &mut Context<'_>) -> LinkState {
        if self.front.is_link_up() { LinkState::Up } else { LinkState::Down }
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.max_transmission_unit =
            (self.front.mtu() as usize + ETHERNET).min(self.to_send.as_ref().len());
        capabilities.checksum.tcp = Checksum::None;
        capabilities
    }

    fn hardware_address(&self) -> HardwareAddress {
        HardwareAddress::Ethernet(self.front.mac().0)
    }
}
