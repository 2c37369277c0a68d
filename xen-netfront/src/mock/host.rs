//! The host's port of a switch, for smoltcp.

use std::collections::VecDeque;
use std::vec;
use std::vec::Vec;

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::MockSwitch;

/// The host's port as a `smoltcp::phy::Device`: a peer for what is tested in a guest. It sees frames as on a wire.
#[derive(Debug)]
pub struct HostDevice {
    switch: MockSwitch,
    frames: VecDeque<Vec<u8>>,
}

impl HostDevice {
    /// The host's port.
    pub fn new(switch: &MockSwitch) -> Self {
        Self { switch: switch.clone(), frames: VecDeque::new() }
    }
}

/// A frame that arrived.
#[derive(Debug)]
pub struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// A frame that will be sent.
#[derive(Debug)]
pub struct ToSend(MockSwitch);

impl TxToken for ToSend {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.send(frame);
        result
    }
}

impl Device for HostDevice {
    type RxToken<'a> = Received;
    type TxToken<'a> = ToSend;

    fn receive(&mut self, _: Instant) -> Option<(Received, ToSend)> {
        while self.frames.is_empty() {
            self.frames.extend(self.switch.receive()?.to_wire().unwrap_or_default());
        }
        Some((Received(self.frames.pop_front()?), ToSend(self.switch.clone())))
    }

    fn transmit(&mut self, _: Instant) -> Option<ToSend> {
        Some(ToSend(self.switch.clone()))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}
