//! `smoltcp::phy::Device` (feature `smoltcp-v0-14`).

use core::fmt;

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use xen_hypercall::Platform;

use crate::{FRAME_MAX, NetFront};

/// The length of an Ethernet header, in bytes.
const HEADER: usize = 14;

/// A network device with two private frames: the stack reads and writes these, the backend never sees them change.
pub struct SmoltcpDevice<'x, P: Platform> {
    front: NetFront<'x, P>,
    received: [u8; FRAME_MAX],
    to_send: [u8; FRAME_MAX],
}

impl<'x, P: Platform> SmoltcpDevice<'x, P> {
    /// Wraps a device.
    pub fn new(front: NetFront<'x, P>) -> Self {
        Self { front, received: [0; FRAME_MAX], to_send: [0; FRAME_MAX] }
    }

    /// The device itself.
    pub fn front(&self) -> &NetFront<'x, P> {
        &self.front
    }

    /// The device itself.
    pub fn front_mut(&mut self) -> &mut NetFront<'x, P> {
        &mut self.front
    }

    /// The device again.
    pub fn into_inner(self) -> NetFront<'x, P> {
        self.front
    }
}

impl<P: Platform> fmt::Debug for SmoltcpDevice<'_, P> {
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
pub struct ToSend<'a, 'x, P: Platform> {
    front: &'a mut NetFront<'x, P>,
    frame: &'a mut [u8],
}

impl<P: Platform> fmt::Debug for ToSend<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ToSend")
    }
}

impl<P: Platform> TxToken for ToSend<'_, '_, P> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let len = len.min(self.frame.len());
        let frame = &mut self.frame[..len];
        let result = f(frame);
        // There was room when the token was made. A device that broke since loses frames, as networks do.
        let _ = self.front.transmit(frame);
        result
    }
}

impl<'x, P: Platform> Device for SmoltcpDevice<'x, P> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = ToSend<'a, 'x, P>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        // The stack may answer at once, so there must be room for that.
        if self.front.can_transmit() == Ok(0) {
            return None;
        }
        let len = self.front.receive(&mut self.received).ok()??;
        let received = Received(self.received.get(..len)?);
        Some((received, ToSend { front: &mut self.front, frame: &mut self.to_send }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        match self.front.can_transmit() {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(ToSend { front: &mut self.front, frame: &mut self.to_send }),
        }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.front.mtu() as usize + HEADER;
        // All checksums are made and checked here: the backend was asked to give us whole frames only.
        capabilities.checksum.ipv4 = Checksum::Both;
        capabilities
    }
}
