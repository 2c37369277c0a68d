//! Network cards: `vif/0` with all that its backend offers, `vif/1` on the same bridge, first with nothing. They send each
//! other frames, and one talks to dom0.

mod control;
mod frames;
mod life;
pub(crate) mod lives;
mod stream;
mod wire;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use check_report::Words;
use check_report::{Failure, Report, ensure};
use xen_hypercall::Wait;
use xen_netfront::{Config, Error, FRAME_MAX, Features, Mac, Multicast, NetFront, RxMeta, TxMeta};

use crate::place::{PATIENCE, Place, Xen};

/// A card; `N` queues at most.
pub(crate) type Card<const N: usize> = NetFront<'static, Xen, N>;
/// The one with everything, and its peer.
pub(crate) type First = Card<3>;
pub(crate) type Second = Card<1>;

/// How long a frame that was not sent is waited for.
const SILENCE: Duration = Duration::from_millis(100);

const EVERYTHING: Config = Config {
    send: Features::all(),
    receive: Features::all(),
    tx_pages: 256,
    rx_pages: 256,
    queues: usize::MAX,
    multicast_filter: true,
    control_ring: true,
    headroom: 256,
    await_device: true,
    follow_link: true,
    split_channels: true,
};
/// The same, but hears all.
const UNFILTERED: Config = Config { multicast_filter: false, ..EVERYTHING };
/// What the first cards could do.
const LITTLE: Config = Config {
    send: Features::empty(),
    receive: Features::empty(),
    tx_pages: 64,
    rx_pages: 64,
    queues: 1,
    multicast_filter: false,
    control_ring: false,
    headroom: 0,
    await_device: false,
    follow_link: false,
    split_channels: false,
};

/// Runs all checks.
pub(crate) fn run(place: &mut Place, words: &Words, report: &mut Report) {
    let Some(mut first) = connect::<3>(place, report, "net/connect", 0, EVERYTHING) else { return };
    negotiated(place, &mut first, words, report);
    let Some(mut second) = connect::<1>(place, report, "net/connect-with-nothing", 1, LITTLE) else { return };
    frames::plain(place, &mut first, &mut second, report);
    life::close(place, second, report, "net/close");
    let Some(mut second) = connect::<1>(place, report, "net/open-again", 1, UNFILTERED) else { return };
    frames::all(place, &mut first, &mut second, report);
    control::run(place, &mut first, &mut second, report);
    frames::multicast(place, &mut first, &mut second, report);
    life::run(place, &mut first, &mut second, report);
    life::close(place, second, report, "net/close-again");
    stream::run(place, first, report);
}

fn connect<const N: usize>(
    place: &mut Place,
    report: &mut Report,
    name: &str,
    index: u32,
    config: Config,
) -> Option<Box<Card<N>>> {
    let mut card = None;
    report.check(name, || {
        card = Some(open(place, index, config)?);
        Ok(())
    });
    card
}

/// A card is large, and moved while it is made: that happens here alone.
#[inline(never)]
fn open<const N: usize>(place: &mut Place, index: u32, config: Config) -> Result<Box<Card<N>>, Failure> {
    let deadline = place.soon();
    let Place { xs, events, grants, .. } = place;
    Ok(Box::new(NetFront::connect_with(xs, events, grants, index, deadline, config)?))
}

/// Whether each thing that the backend offers is made use of.
fn negotiated(place: &mut Place, card: &mut First, words: &Words, report: &mut Report) {
    let backend = place.xs.read_str("device/vif/0/backend").map(String::from).unwrap_or_default();
    let mut offers = |node: &str| -> u64 {
        let value = place.xs.read_str(&format!("{backend}/{node}"));
        value.ok().and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    let queues = card.queues() as u64;
    let sends = |feature| card.features().contains(feature);
    let split = card.channel(0).map(|channel| channel.port());
    let split = split != card.receive_channel(0).map(|channel| channel.port());
    let most = offers("multi-queue-max-queues");
    let dynamic = card.multicast() == Multicast::Dynamic;
    let rows = [
        ("queues", "multi-queue-max-queues", most > 1 && queues == most.min(3)),
        ("split-channels", "feature-split-event-channels", split),
        ("scatter-gather", "feature-sg", sends(Features::SCATTER_GATHER)),
        ("checksums-v6", "feature-ipv6-csum-offload", sends(Features::CHECKSUM_V6)),
        ("gso-v4", "feature-gso-tcpv4", sends(Features::GSO_V4)),
        ("gso-v6", "feature-gso-tcpv6", sends(Features::GSO_V6)),
        ("multicast-control", "feature-multicast-control", card.multicast() != Multicast::Unfiltered),
        ("dynamic-multicast-control", "feature-dynamic-multicast-control", dynamic),
    ];
    for (name, node, used) in rows {
        let name = format!("net/{name}");
        match offers(node) {
            0 => report.lacking(&name, &format!("the backend offers no {node}")),
            offered => report.check(&name, || {
                ensure!(used, "the backend offers {node} = {offered}, and it is not in use");
                Ok(())
            }),
        }
    }
    report.check("net/checksums-v4", || {
        ensure!(offers("feature-no-csum-offload") == 0, "the backend takes none");
        ensure!(sends(Features::CHECKSUM_V4), "they are not left to the backend");
        Ok(())
    });
    report.check("net/control-ring", || {
        ensure!(offers("feature-ctrl-ring") == 1, "the backend has none");
        ensure!(card.control(Duration::ZERO).is_some(), "it is not in use");
        Ok(())
    });
    report.check("net/mac-and-mtu", || {
        ensure!(words.get("mac") == Some(&*format!("{}", card.mac())), "it has {}", card.mac());
        ensure!(words.get("mtu") == Some(&*format!("{}", card.mtu())), "it has an MTU of {}", card.mtu());
        Ok(())
    });
}

/// Sends a frame, once there is room.
fn send<const N: usize>(
    place: &Place,
    card: &mut Card<N>,
    frame: &[u8],
    meta: TxMeta,
) -> Result<(), Failure> {
    stage(place, card, frame, meta)?;
    Ok(card.publish()?)
}

/// Makes a frame ready to be sent, once there is room: the backend may have a page still whose frame has arrived.
fn stage<const N: usize>(
    place: &Place,
    card: &mut Card<N>,
    frame: &[u8],
    meta: TxMeta,
) -> Result<(), Failure> {
    let deadline = place.soon();
    loop {
        let seen = place.events.seq();
        match card.transmit_with(&[frame], meta) {
            Err(Error::Full) if place.kernel.now() < deadline => {
                card.publish()?;
                place.events.wait_since(seen, Some(place.kernel.now() + Duration::from_millis(5)));
            }
            sent => return Ok(sent?),
        }
    }
}

/// The next frame from `sender`, whatever else comes; none when none does until `deadline`.
fn next_from<const N: usize>(
    place: &Place,
    card: &mut Card<N>,
    sender: Mac,
    deadline: Duration,
) -> Result<Option<(Vec<u8>, RxMeta)>, Failure> {
    let mut buffer = vec![0; FRAME_MAX];
    loop {
        let seen = place.events.seq();
        match card.receive_with(&mut buffer)? {
            Some(meta) if buffer.get(6..12) == Some(&sender.0) => {
                buffer.truncate(meta.len);
                return Ok(Some((buffer, meta)));
            }
            Some(_) => {}
            None if place.kernel.now() >= deadline => return Ok(None),
            None if card.arm()? => {}
            None => place.events.wait_since(seen, Some(deadline)),
        }
    }
}

/// A frame that has to come.
fn receive<const N: usize>(
    place: &Place,
    card: &mut Card<N>,
    sender: Mac,
) -> Result<(Vec<u8>, RxMeta), Failure> {
    let frame = next_from(place, card, sender, place.kernel.now() + PATIENCE / 4)?;
    frame.ok_or_else(|| Failure("a frame did not arrive".into()))
}
