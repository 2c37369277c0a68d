//! What follows xenstore: requests of the toolstack, devices that come and go, and a node.

use core::convert::Infallible;
use core::future::Future;

use embassy_executor::Spawner;
use embassy_futures::select::{Either, select};
use embassy_net::{Ipv4Address, Ipv4Cidr, StaticConfigV4};
use embassy_time::{Instant, Timer};
use xen_hypercall::{Platform, Wait};
use xen_xenstore::{Error, Path};

use crate::figures::count;
use crate::{Domain, Ending, start as spawn};

/// Where a message for this guest is.
const MESSAGE: &str = "data/message";
/// Where the toolstack says what it wants.
const SHUTDOWN: &str = "control/shutdown";

/// Starts the tasks.
pub(crate) fn start<P: Platform + Wait + 'static>(domain: &'static Domain<P>, spawner: Spawner) {
    spawn(spawner, async {
        let until = |at: core::time::Duration| Timer::at(Instant::from_micros(at.as_micros() as u64));
        let error = domain.store.runner().run_with(until).await;
        log::error!("{error}; xenstore is not followed any more");
    });
    spawn(spawner, told("requests of the toolstack", obey(domain)));
    spawn(spawner, told("the message", message(domain)));
    spawn(spawner, look_after_card(domain));
    spawn(spawner, look_after_disk(domain));
}

/// Tells why a task ends.
async fn told(what: &'static str, task: impl Future<Output = Result<(), Error>>) {
    if let Err(error) = task.await {
        log::error!("{error}; {what} will not be seen any more");
    }
}

/// Does as the toolstack asks.
async fn obey<P: Platform + Wait>(domain: &Domain<P>) -> Result<(), Error> {
    let client = domain.store.client();
    let mut watch = client.watch(SHUTDOWN).await?;
    for feature in ["control/feature-poweroff", "control/feature-reboot"] {
        // Some toolstacks keep the directory to themselves.
        let _ = client.write(feature, b"1").await;
    }
    loop {
        watch.changed().await?;
        // The request is accepted by taking it away.
        let ending = client.transaction(async |transaction| {
            let ending = transaction.read_str(SHUTDOWN, |word| {
                Ok(match word {
                    "poweroff" | "halt" => Some(Ending::PowerOff),
                    "reboot" => Some(Ending::Reboot),
                    _ => None,
                })
            });
            let ending = match ending.await {
                Err(error) if error.is_absent() => None,
                ending => ending?,
            };
            if ending.is_some() {
                transaction.write(SHUTDOWN, b"").await?;
            }
            Ok(ending)
        });
        if let Some(ending) = ending.await? {
            log::info!("the toolstack asks for {ending:?}");
            domain.ending.set(Some(ending));
        }
    }
}

/// Follows a node.
async fn message<P: Platform + Wait>(domain: &Domain<P>) -> Result<(), Error> {
    let client = domain.store.client();
    let mut watch = client.watch(MESSAGE).await?;
    loop {
        watch.changed().await?;
        let mut buf = [0; 256];
        let text = client.read_str(MESSAGE, &mut buf).await.unwrap_or_default();
        *domain.message.borrow_mut() = text.into();
        log::info!("message: {text}");
    }
}

/// The address that the toolstack wrote down for the card, which xl does on the backend's side.
pub(crate) async fn address<P: Platform + Wait>(domain: &Domain<P>) -> Option<StaticConfigV4> {
    let (client, mut buf) = (domain.store.client(), [0; 256]);
    let backend = Path::new(client.read_str("device/vif/0/backend", &mut buf).await.ok()?).ok()?;
    let text = client.read_str(&backend.join("ip").ok()?, &mut buf).await.ok()?;
    let address: Ipv4Address = text.trim().parse().ok()?;
    Some(StaticConfigV4 {
        address: Ipv4Cidr::new(address, 24),
        gateway: None,
        dns_servers: Default::default(),
    })
}

/// Waits for the first disk that the toolstack makes, and looks after it.
async fn look_after_disk<P: Platform + Wait>(domain: &'static Domain<P>) {
    const DISKS: &str = "device/vbd";
    let client = domain.store.client();
    let found = async {
        let mut watch = client.watch(DISKS).await?;
        loop {
            watch.changed().await?;
            let mut first: Option<u32> = None;
            let listed =
                client.directory(DISKS, |name| first = first.into_iter().chain(name.parse().ok()).min());
            match listed.await {
                Err(error) if !error.is_absent() => return Err(error),
                _ => {}
            }
            if let Some(index) = first {
                return Ok(index);
            }
        }
    };
    let index = match found.await {
        Ok(index) => index,
        Err(error) => return log::error!("{error}; no disk will be seen coming"),
    };
    let control = domain.disk.control(domain.events, domain.grants, index, Default::default());
    let Some(mut control) = control else { return };
    match select(control.run(client), tell_of_disk(domain, index)).await {
        Either::First(error) => log::error!("disk: {error}"),
        Either::Second(never) => match never {},
    }
}

async fn tell_of_disk<P: Platform + Wait>(domain: &Domain<P>, index: u32) -> Infallible {
    let disk = domain.disk.handle();
    loop {
        disk.connected().await;
        log::info!("disk {index} connected, {} sectors", disk.capacity());
        count(&domain.figures.disks, 1);
        while disk.state() == Some(xen_blkfront::State::Connected) {
            // Whatever happens from here on.
            let changed = disk.changed();
            changed.await;
        }
        log::info!("disk {index} gone");
    }
}

/// Looks after the card, whenever it comes.
async fn look_after_card<P: Platform + Wait>(domain: &'static Domain<P>) {
    let control = domain.card.control(domain.events, domain.grants, 0, Default::default());
    let Some(mut control) = control else { return };
    match select(control.run(domain.store.client()), tell_of_card(domain)).await {
        Either::First(Ok(never)) | Either::Second(never) => match never {},
        Either::First(Err(error)) => log::error!("card: {error}"),
    }
}

async fn tell_of_card<P: Platform + Wait>(domain: &Domain<P>) -> Infallible {
    let card = &domain.card;
    loop {
        card.link(false).await;
        if let Some(mac) = card.mac() {
            log::info!("card {mac} connected");
        }
        count(&domain.figures.cards, 1);
        card.link(true).await;
        log::info!("card gone");
    }
}
