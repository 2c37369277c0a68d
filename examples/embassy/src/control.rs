//! Follows xenstore: what the toolstack asks for, devices that come and go, and a node.

use core::future::poll_fn;
use core::time::Duration;

use embassy_futures::select::select;
use embassy_net::{Ipv4Address, Ipv4Cidr, StaticConfigV4};
use embassy_time::Timer;
use xen_blkfront::BlkFront;
use xen_hypercall::{Platform, Wait};
use xen_netfront::NetFront;
use xen_xenstore::control::{Request, ShutdownWatch};
use xen_xenstore::xenbus::XenbusState;
use xen_xenstore::{Error, Path, Xenstore};

use crate::figures::count;
use crate::{Domain, Ending};

/// How long a device may take to connect or to go.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where a message for this guest is.
const MESSAGE: &str = "data/message";

pub(crate) async fn run<P: Platform + Wait + 'static>(domain: &'static Domain<P>) {
    if let Err(error) = follow(domain).await {
        log::error!("{error}; xenstore is not followed any more");
    }
}

async fn follow<P: Platform + Wait + 'static>(domain: &'static Domain<P>) -> Result<(), Error> {
    let (shutdown, message) = {
        let xs = &mut *domain.store.borrow_mut();
        (ShutdownWatch::new(xs, &[Request::PowerOff, Request::Reboot])?, xs.watch(MESSAGE)?)
    };
    loop {
        {
            let xs = &mut *domain.store.borrow_mut();
            if let Some(request) = shutdown.poll(xs)? {
                if shutdown.accept(xs, request)? {
                    log::info!("the toolstack asks for {request:?}");
                    let reboots = request == Request::Reboot;
                    domain.ending.set(Some(if reboots { Ending::Reboot } else { Ending::PowerOff }));
                }
            }
            if xs.fired(&message)? {
                let text = xs.read_str(MESSAGE).unwrap_or_default();
                *domain.message.borrow_mut() = text.into();
                log::info!("message: {text}");
            }
            domain.follow_card(xs);
            domain.follow_disk(xs);
        }
        let event = poll_fn(|cx| domain.store.borrow().channel().poll_event(cx));
        select(event, Timer::after_millis(200)).await;
    }
}

impl<P: Platform + Wait + 'static> Domain<P> {
    fn follow_card(&self, xs: &mut Xenstore<'static, P>) {
        let now = self.events.platform().now();
        match self.card.with(|card| card.service(xs)) {
            None if is_ready(xs, "vif", 0) => {
                match NetFront::connect(xs, self.events, self.grants, 0, now + PATIENCE) {
                    Ok(card) => {
                        log::info!("card {} connected", card.mac());
                        count(&self.figures.cards, 1);
                        self.card.put(card);
                    }
                    Err(error) => log::warn!("{error}"),
                }
            }
            Some(Ok(xen_netfront::State::Connected)) | None => {}
            Some(state) => {
                log::info!("card: closed, {state:?}");
                if let Some(card) = self.card.take() {
                    let _ = card.close(xs, now + PATIENCE);
                }
            }
        }
    }

    fn follow_disk(&self, xs: &mut Xenstore<'static, P>) {
        let now = self.events.platform().now();
        match self.disk.with(|disk| disk.service(xs)) {
            None => {
                let Ok(Some(index)) = BlkFront::first_index(xs) else { return };
                if !is_ready(xs, "vbd", index) {
                    return;
                }
                match BlkFront::connect(xs, self.events, self.grants, index, now + PATIENCE) {
                    Ok(disk) => {
                        log::info!("disk {index} connected, {} sectors", disk.capacity());
                        count(&self.figures.disks, 1);
                        drop(self.disk.put(disk));
                    }
                    Err(error) => log::warn!("{error}"),
                }
            }
            Some(Ok(xen_blkfront::State::Connected)) => {}
            Some(state) => {
                log::info!("disk: {state:?}");
                if let Some(disk) = self.disk.take() {
                    let _ = disk.close(xs, now + PATIENCE);
                }
            }
        }
    }

    /// The address that the toolstack wrote down for the card, which xl does on the backend's side.
    pub(crate) fn address(&self) -> Option<StaticConfigV4> {
        let xs = &mut *self.store.borrow_mut();
        let backend = Path::new(xs.read_str("device/vif/0/backend").ok()?).ok()?;
        let text = xs.read_str(&backend.join("ip").ok()?).ok()?;
        let address: Ipv4Address = text.trim().parse().ok()?;
        Some(StaticConfigV4 {
            address: Ipv4Cidr::new(address, 24),
            gateway: None,
            dns_servers: Default::default(),
        })
    }
}

/// Whether a backend waits for a frontend.
fn is_ready<P: Platform + Wait>(xs: &mut Xenstore<'_, P>, kind: &str, index: u32) -> bool {
    backend(xs, kind, index).is_ok_and(|state| state == XenbusState::INIT_WAIT)
}

fn backend<P: Platform + Wait>(
    xs: &mut Xenstore<'_, P>,
    kind: &str,
    index: u32,
) -> Result<XenbusState, Error> {
    let node = Path::format(format_args!("device/{kind}/{index}/backend"))?;
    let backend = Path::new(xs.read_str(&node)?)?;
    xs.read_parsed(&backend.join("state")?)
}
