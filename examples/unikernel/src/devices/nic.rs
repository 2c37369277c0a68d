//! Netfront as the application's network card.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use core::time::Duration;

use smoltcp::phy::{Device, DeviceCapabilities};
use smoltcp::time::Instant;
use webserver::report::Report;
use xen_hypercall::DomId;
use xen_netfront::adapters::smoltcp::SmoltcpDevice;
use xen_netfront::{Config, Connecting, Error, FRAME_MAX, Features, Followup, NetFront, State, packet};

use super::Grants;
use crate::machine::{Events, Store};
use crate::platform::Kernel;

type Inner = SmoltcpDevice<'static, &'static Kernel, Box<[u8]>>;

#[derive(Debug)]
pub(crate) struct Nic {
    device: Box<Inner>,
    store: Store,
    state: State,
}

/// A card whose backend is about to connect.
pub(super) struct Begun(Connecting<'static, &'static Kernel>);

/// Begins with the first network card; without one, or when it does not come, says so and goes without.
pub(super) fn begin(store: Store, events: Events, grants: Grants, deadline: Duration) -> Option<Begun> {
    // Large packets both ways: a few of them do for a page of the site. Nobody asks after the link.
    let config =
        Config { receive: Features::all(), await_device: false, follow_link: false, ..Config::default() };
    match NetFront::begin(&mut store.borrow_mut(), events, grants, 0, deadline, config) {
        Ok(begun) => return Some(Begun(begun)),
        Err(Error::Xenstore(error)) if error.is_not_found() => {
            log::warn!("net: this domain has no network card (vif)");
        }
        Err(error) => log::error!("net: {error}; carrying on without"),
    }
    None
}

impl Begun {
    /// Waits for the backend.
    pub(super) fn finish(self, store: Store, deadline: Duration) -> Option<Nic> {
        let front = self.0.finish(&mut store.borrow_mut(), deadline);
        let nic = front.map(|front| {
            let backend = front.backend().unwrap_or(DomId::INVALID);
            log::info!("net: vif/0 {} connected to {backend}, MTU {}", front.mac(), front.mtu());
            let buffer = |len| vec![0; len].into_boxed_slice();
            let (state, longest) = (front.state(), front.mtu() as usize + packet::ETHERNET);
            let device = Box::new(SmoltcpDevice::new(front, buffer(FRAME_MAX), buffer(longest)));
            Nic { state, device, store }
        });
        nic.inspect_err(|error| log::error!("net: {error}; carrying on without")).ok()
    }
}

impl Device for Nic {
    type RxToken<'a> = <Inner as Device>::RxToken<'a>;
    type TxToken<'a> = <Inner as Device>::TxToken<'a>;

    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        self.device.receive(now)
    }

    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        self.device.transmit(now)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.device.capabilities()
    }
}

impl webserver::Nic for Nic {
    fn mac(&self) -> [u8; 6] {
        self.device.front().mac().0
    }

    fn arm(&mut self) -> bool {
        let front = self.device.front_mut();
        let mut xs = self.store.borrow_mut();
        if let Err(error) = front.service(&mut xs) {
            log::debug!("net: {error}");
        }
        // The card was unplugged, or its backend started again, and is there anew.
        if front.state() == State::Closed && front.is_backend_waiting(&mut xs) == Ok(true) {
            let deadline = xs.now() + crate::devices::CLOSING;
            if let Err(error) = front.reconnect(&mut xs, deadline) {
                log::warn!("net: {error}");
            }
        }
        let ready = front.arm().unwrap_or(false);
        let state = front.state();
        if state != self.state {
            log::warn!("net: {state}");
            self.state = state;
        }
        ready
    }

    fn flush(&mut self) {
        // A device that is broken or closed says so when it is armed.
        let _ = self.device.publish();
    }

    fn has_moved(&mut self) -> bool {
        self.device.front_mut().take_followup().contains(Followup::ANNOUNCE)
    }

    fn report(&self, to: &mut dyn Report) {
        let (front, stats) = (self.device.front(), self.device.front().stats());
        to.section("Network");
        to.fact("network card", &format_args!("vif/0, {}, {}", front.mac(), front.state()));
        let offloads = front.features().iter_names().fold(String::new(), |list, (name, _)| {
            if list.is_empty() { name.into() } else { list + " " + name }
        });
        to.fact("offloads", &offloads.to_ascii_lowercase());
        to.figure("net_rx_frames_total", stats.rx_frames);
        to.figure("net_rx_bytes_total", stats.rx_bytes);
        to.figure("net_rx_dropped_total", stats.rx_dropped);
        to.figure("net_tx_frames_total", stats.tx_frames);
        to.figure("net_tx_bytes_total", stats.tx_bytes);
        to.figure("net_tx_errors_total", stats.tx_errors);
        to.figure("net_notifications_total", stats.notifications);
        to.figure("net_rx_large_total", stats.rx_gso);
        to.figure("net_tx_large_total", stats.tx_gso);
        to.figure("net_copied_bytes_total", stats.copied_bytes);
    }

    fn close(self) {
        let Self { device, store, .. } = self;
        let mut xs = store.borrow_mut();
        let deadline = xs.now() + crate::devices::CLOSING;
        if let Err(error) = device.into_inner().close(&mut xs, deadline) {
            log::warn!("net: {error}");
        }
    }
}

#[cfg(feature = "suspend")]
impl Nic {
    /// The card, for a suspend.
    pub(crate) fn front(&mut self) -> &mut NetFront<'static, &'static Kernel> {
        self.device.front_mut()
    }
}
