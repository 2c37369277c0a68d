//! `embassy_net_driver::Driver` (feature `embassy-net-driver-v0-2`).
//!
//! TCP's checksums are left to the backend when a frame is sent, and are verified here when it does not vouch for one
//! that arrived. Frames go to the backend one by one, and a stream's segments are not put together to large packets as
//! for smoltcp: the driver is not told when the stack is done for the moment, so what it kept back to wait for more might
//! wait for ever, or cost the stack another turn for each stream.

use core::cell::{RefCell, RefMut};
use core::fmt;
use core::task::{Context, Poll};

use embassy_net_driver::{Capabilities, Checksum, Driver, HardwareAddress, LinkState, RxToken, TxToken};
use xen_hypercall::Platform;

use super::vet::vet;
use crate::packet::{ETHERNET, Packet, TCP};
use crate::{Mac, NetFront, TxMeta};

/// A network device with two private buffers: the stack reads and writes these, the backend never sees them change.
///
/// The device is in a cell beside it, so that a task can go on to control it while the stack has the driver: it calls
/// [`service`](NetFront::service) when xenstore has an event, [`reconnect`](NetFront::reconnect), or chooses multicast
/// addresses. None of these calls is asynchronous, so a borrow ends before anybody else runs; one that lasts longer keeps frames
/// waiting.
pub struct EmbassyDriver<'c, 'x, P: Platform, B, const QUEUES: usize = 1> {
    card: &'c RefCell<NetFront<'x, P, QUEUES>>,
    received: B,
    to_send: B,
    /// Frames that arrived with a wrong checksum.
    wrong: u64,
    /// As the stack was told last.
    up: bool,
    mac: Mac,
    /// The longest frame.
    longest: usize,
}

impl<'c, 'x, P: Platform, B: AsRef<[u8]> + AsMut<[u8]>, const QUEUES: usize>
    EmbassyDriver<'c, 'x, P, B, QUEUES>
{
    /// Wraps a device. The buffers hold a frame each: one that arrived, and one that is to be sent, of the MTU and 14
    /// bytes at least. A device that is borrowed at this moment counts as one without a link, address and MTU.
    pub fn new(card: &'c RefCell<NetFront<'x, P, QUEUES>>, received: B, to_send: B) -> Self {
        let (mac, mtu) = card.try_borrow().map_or((Mac([0; 6]), 0), |front| (front.mac(), front.mtu()));
        let longest = (mtu as usize + ETHERNET).min(to_send.as_ref().len());
        Self { card, received, to_send, wrong: 0, up: false, mac, longest }
    }

    /// Frames that arrived with a wrong TCP checksum, and were dropped.
    pub fn wrong_checksums(&self) -> u64 {
        self.wrong
    }

    /// The length of the next frame that the stack may see, which may answer it at once, so that there must be room for that.
    fn next(&mut self, front: &mut NetFront<'x, P, QUEUES>) -> Option<usize> {
        if !has_room(front) {
            return None;
        }
        // Ends: the device has no more frames than its rings have slots.
        loop {
            let meta = front.receive_with(self.received.as_mut()).ok()??;
            let frame = self.received.as_mut().get_mut(..meta.len)?;
            if vet(frame, meta.checksum) {
                return Some(meta.len);
            }
            self.wrong += 1;
        }
    }

    /// The device; none when it is borrowed, and then the stack comes back.
    fn card(&self, cx: &Context<'_>) -> Option<RefMut<'c, NetFront<'x, P, QUEUES>>> {
        let card = self.card.try_borrow_mut().ok();
        if card.is_none() {
            cx.waker().wake_by_ref();
        }
        card
    }
}

fn has_room<P: Platform, const QUEUES: usize>(front: &mut NetFront<'_, P, QUEUES>) -> bool {
    front.can_transmit().is_ok_and(|pages| pages > 0)
}

/// Shows the backend what is queued, and leaves the task's waker. Whether to look again instead of waiting.
fn look_again<P: Platform, const QUEUES: usize>(
    front: &mut NetFront<'_, P, QUEUES>,
    cx: &mut Context<'_>,
) -> bool {
    // A device that is not at work any more says so by its link, for which the stack asks, too.
    front.publish().is_ok() && front.poll_receivable(cx) == Poll::Ready(())
}

impl<P: Platform, B, const QUEUES: usize> fmt::Debug for EmbassyDriver<'_, '_, P, B, QUEUES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EmbassyDriver").field(self.card).finish()
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
    card: &'a RefCell<NetFront<'x, P, QUEUES>>,
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
        if let Ok(mut front) = self.card.try_borrow_mut() {
            let _ = front.transmit_with(&[frame], meta).and_then(|()| front.publish());
        }
        result
    }
}

impl<'c, 'x, P: Platform, B: AsRef<[u8]> + AsMut<[u8]>, const QUEUES: usize> Driver
    for EmbassyDriver<'c, 'x, P, B, QUEUES>
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
        let mut front = self.card(cx)?;
        let mut found = self.next(&mut front);
        if found.is_none() && look_again(&mut front, cx) {
            found = self.next(&mut front);
            if found.is_none() {
                // Something else happened, for which there was an event that is taken now.
                cx.waker().wake_by_ref();
            }
        }
        let received = Received(self.received.as_mut().get_mut(..found?)?);
        Some((received, ToSend { card: self.card, frame: self.to_send.as_mut() }))
    }

    fn transmit(&mut self, cx: &mut Context<'_>) -> Option<Self::TxToken<'_>> {
        let mut front = self.card(cx)?;
        let room = has_room(&mut front) || (look_again(&mut front, cx) && has_room(&mut front));
        room.then_some(ToSend { card: self.card, frame: self.to_send.as_mut() })
    }

    fn link_state(&mut self, cx: &mut Context<'_>) -> LinkState {
        if let Some(mut front) = self.card(cx) {
            // Left in any case: the stack comes back when the link changes.
            self.up = front.is_link_up();
            let _ = front.poll_link(cx, self.up);
        }
        if self.up { LinkState::Up } else { LinkState::Down }
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.max_transmission_unit = self.longest;
        capabilities.checksum.tcp = Checksum::None;
        capabilities
    }

    fn hardware_address(&self) -> HardwareAddress {
        HardwareAddress::Ethernet(self.mac.0)
    }
}
