//! `embassy_net_driver::Driver` (feature `embassy-net-driver-v0-2`).
//!
//! TCP's checksums are left to the backend when a frame is sent, and are verified here when it does not vouch for one
//! that arrived. What the stack sends in a turn goes to the backend together when it asks for the link, as embassy-net does at
//! the end of each turn: many small frames with one event, and consecutive segments of a stream as one large packet.

use core::fmt;
use core::task::{Context, Poll};

use embassy_net_driver::{Capabilities, Checksum, Driver, HardwareAddress, LinkState, RxToken, TxToken};
use xen_hypercall::Platform;

pub use super::ToSend;
use super::stack::{Hold, Pending, Stack, has_room, next};
use crate::wake::Sides;
use crate::{Card, Error, Mac, NetFront};

/// The place of a network device, with two private buffers: the stack reads and writes these, the backend never sees them change.
///
/// The stack has a link while a device is at work in the place and its link is up. It finds the address of the device that is
/// there, or was there last. The MTU it asks for once: with that of the device that is there then, or 1500. Longer frames than
/// another device takes are lost.
///
/// A stack other than embassy-net must ask for the link, for a frame or for room after it has sent, and go on until there is none:
/// what it sent waits for that.
pub struct EmbassyDriver<'c, 'x, P: Platform, B, const QUEUES: usize = 1> {
    stack: Stack<'x, P, B, QUEUES, &'c Card<'x, P, QUEUES>>,
    /// As the stack was told last.
    up: bool,
    mac: Mac,
}

impl<'c, 'x, P: Platform, B: AsRef<[u8]> + AsMut<[u8]>, const QUEUES: usize>
    EmbassyDriver<'c, 'x, P, B, QUEUES>
{
    /// Stands on the place of a device, where one need not be yet. The buffers hold a frame each: one that arrived, and one that is to
    /// be sent, of the MTU and 14 bytes at least.
    pub fn new(card: &'c Card<'x, P, QUEUES>, received: B, to_send: B) -> Self {
        let mac = card.mac().unwrap_or(Mac([0; 6]));
        Self { stack: Stack::new(card, received, to_send), up: false, mac }
    }

    /// Frames that arrived with a wrong TCP checksum, and were dropped.
    pub fn wrong_checksums(&self) -> u64 {
        self.stack.wrong
    }

    fn card(&self) -> &'c Card<'x, P, QUEUES> {
        self.stack.sender.hold
    }
}

/// Sends what was put together: the task is about to wait.
fn push<P: Platform, const QUEUES: usize>(
    front: &mut NetFront<'_, P, QUEUES>,
    stamp: &mut u32,
    pending: &mut Pending,
) -> Result<(), Error> {
    pending.of(Some(stamp)).push(front)
}

impl<P: Platform, B, const QUEUES: usize> fmt::Debug for EmbassyDriver<'_, '_, P, B, QUEUES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EmbassyDriver").field(&self.stack.sender.hold).finish()
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

impl<'x, P: Platform, const QUEUES: usize, H: Hold<'x, P, QUEUES>> TxToken for ToSend<'_, 'x, P, QUEUES, H> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.fill(len, f)
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
        = ToSend<'a, 'x, P, QUEUES, &'c Card<'x, P, QUEUES>>
    where
        Self: 'a;

    fn receive(&mut self, cx: &mut Context<'_>) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let card = self.card();
        let Stack { sender, received, wrong, .. } = &mut self.stack;
        let found = card.look(cx, Sides::Both, |front, stamp| {
            let found = next(front, sender.pending.of(Some(stamp)), received.as_mut(), wrong);
            if found.is_none() {
                push(front, stamp, &mut sender.pending)?;
            }
            Ok(found)
        });
        let Poll::Ready(Ok(len)) = found else { return None };
        let (frame, to_send) = self.stack.received(len)?;
        Some((Received(frame), to_send))
    }

    fn transmit(&mut self, cx: &mut Context<'_>) -> Option<Self::TxToken<'_>> {
        let card = self.card();
        let pending = &mut self.stack.sender.pending;
        let room = card.look(cx, Sides::Transmit, |front, stamp| {
            let room = has_room(front, pending.of(Some(stamp)));
            if !room {
                push(front, stamp, pending)?;
            }
            Ok(room.then_some(()))
        });
        matches!(room, Poll::Ready(Ok(()))).then(|| self.stack.token())
    }

    fn link_state(&mut self, cx: &mut Context<'_>) -> LinkState {
        // A device that is not at work any more says so by its link.
        let _ = self.stack.publish();
        // The waker is left in any case: the stack comes back when the link changes.
        while let Poll::Ready(up) = self.card().poll_link(cx, self.up) {
            self.up = up;
        }
        if self.up { LinkState::Up } else { LinkState::Down }
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.max_transmission_unit = self.stack.longest();
        capabilities.checksum.tcp = Checksum::None;
        capabilities
    }

    fn hardware_address(&self) -> HardwareAddress {
        HardwareAddress::Ethernet(self.card().mac().unwrap_or(self.mac).0)
    }
}
