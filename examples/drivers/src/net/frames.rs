//! Frames from card to card, by way of both backends and the bridge.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use check_report::{Failure, Report, ensure};
use xen_gnttab::Access;
use xen_hypercall::Wait;
use xen_netfront::packet::{self, Packet};
use xen_netfront::{Checksum, FRAME_MAX, FramePage, Gso, GsoKind, Mac, TxMeta};

use super::wire::{KINDS, Kind, frame, payload};
use super::{Card, First, SILENCE, Second, next_from, receive, send, stage};
use crate::place::Place;

const MSS: u16 = 1400;
const BLANK: TxMeta = TxMeta::new(Checksum::Blank, None);

fn large(kind: Kind) -> TxMeta {
    let kind = if kind.v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
    TxMeta::new(Checksum::Blank, Some(Gso::new(kind, MSS)))
}

/// To and from a card without any features.
pub(super) fn plain(place: &Place, first: &mut First, second: &mut Second, report: &mut Report) {
    for (name, kind) in KINDS {
        report.check(&format!("net/{name}-to-a-simple-card"), || {
            let data = payload(1, 1000);
            send(place, first, &frame(kind, first.mac(), second.mac(), 1, &data), BLANK)?;
            whole(place, second, first.mac(), kind, &data)?;
            // And back, where the driver makes the checksum.
            send(place, second, &frame(kind, second.mac(), first.mac(), 1, &data), BLANK)?;
            whole(place, first, second.mac(), kind, &data)
        });
    }
    for (name, kind) in KINDS.into_iter().filter(|(_, kind)| kind.tcp) {
        report.check(&format!("net/{name}-cut-by-the-backend"), || {
            let data = payload(2, 30000);
            send(place, first, &frame(kind, first.mac(), second.mac(), 2, &data), large(kind))?;
            segments(place, second, first.mac(), kind, &data)
        });
        report.check(&format!("net/{name}-cut-by-the-driver"), || {
            let data = payload(3, 30000);
            send(place, second, &frame(kind, second.mac(), first.mac(), 3, &data), large(kind))?;
            segments(place, first, second.mac(), kind, &data)
        });
    }
}

/// A frame as it was sent, its checksum made or vouched for.
fn whole<const N: usize>(
    place: &Place,
    card: &mut Card<N>,
    from: Mac,
    kind: Kind,
    data: &[u8],
) -> Result<(), Failure> {
    let (frame, meta) = receive(place, card, from)?;
    ensure!(frame.get(kind.headers()..) == Some(data), "{} bytes of something else", frame.len());
    vet(&frame, meta.checksum)
}

fn vet(frame: &[u8], checksum: Checksum) -> Result<(), Failure> {
    let Some(packet) = Packet::parse(frame) else {
        return Err(Failure("not a packet".into()));
    };
    match checksum {
        Checksum::Blank => ensure!(packet::has_partial(frame, &packet), "the pseudo header's sum is wrong"),
        _ => ensure!(packet::verify(frame, &packet), "the checksum is wrong"),
    }
    Ok(())
}

/// What was cut, in order.
fn segments<const N: usize>(
    place: &Place,
    card: &mut Card<N>,
    from: Mac,
    kind: Kind,
    data: &[u8],
) -> Result<(), Failure> {
    for (index, part) in data.chunks(MSS.into()).enumerate() {
        let (frame, meta) = receive(place, card, from)?;
        ensure!(frame.get(kind.headers()..) == Some(part), "segment {index} is another");
        let sequence = frame.get(kind.headers() - 16..kind.headers() - 12);
        let right = 1 + index as u32 * u32::from(MSS);
        ensure!(sequence == Some(&right.to_be_bytes()), "segment {index} has another number");
        vet(&frame, meta.checksum)?;
    }
    Ok(())
}

/// Between two cards with all features.
pub(super) fn all(place: &Place, first: &mut First, second: &mut Second, report: &mut Report) {
    for (name, kind) in KINDS {
        report.check(&format!("net/{name}-checksum-left-out-all-the-way"), || {
            let data = payload(4, 1000);
            send(place, second, &frame(kind, second.mac(), first.mac(), 4, &data), BLANK)?;
            let (frame, meta) = receive(place, first, second.mac())?;
            ensure!(frame.get(kind.headers()..) == Some(&*data), "{} bytes of something else", frame.len());
            ensure!(meta.checksum == Checksum::Blank, "somebody made it: {:?}", meta.checksum);
            vet(&frame, meta.checksum)
        });
    }
    for (name, kind) in KINDS.into_iter().filter(|(_, kind)| kind.tcp) {
        report.check(&format!("net/{name}-large-all-the-way"), || {
            let data = payload(5, 60000);
            there(place, first, second, kind, &data)?;
            there(place, second, first, kind, &data)
        });
    }
    report.check("net/jumbo", || {
        // The largest that the MTU allows, and not to be cut.
        let kind = KINDS[0].1;
        let data = payload(6, second.mtu() as usize + 14 - kind.headers());
        send(place, second, &frame(kind, second.mac(), first.mac(), 6, &data), BLANK)?;
        let (frame, meta) = receive(place, first, second.mac())?;
        ensure!(frame.get(kind.headers()..) == Some(&*data), "{} bytes of something else", frame.len());
        ensure!(meta.gso.is_none() && meta.slots == data.len().div_ceil(4096), "in {} slots", meta.slots);
        Ok(())
    });
    report.check("net/own-pages", || own_pages(place, first, second));
    report.check("net/many", || {
        for burst in 0..20 {
            for port in 0..50 {
                let data = payload(100 + burst, 600 + usize::from(port));
                let frame = frame(KINDS[0].1, second.mac(), first.mac(), port, &data);
                stage(place, second, &frame, BLANK)?;
            }
            second.publish()?;
            let mut seen = [false; 50];
            for count in 0..50 {
                let came = next_from(place, first, second.mac(), place.kernel.now() + SILENCE * 50)?;
                let Some((frame, _)) = came else {
                    return Err(Failure(format!("{count} of 50 frames, {:?}", first.stats())));
                };
                let headers = KINDS[0].1.headers();
                let place = frame.len().checked_sub(headers + 600).and_then(|port| seen.get_mut(port));
                let right = payload(100 + burst, frame.len() - headers);
                ensure!(frame.get(headers..) == Some(&*right), "another frame");
                ensure!(place.is_some_and(|seen| !core::mem::replace(seen, true)), "a frame twice");
            }
        }
        Ok(())
    });
}

/// One large packet, in one piece at the other end.
fn there<const M: usize, const N: usize>(
    place: &Place,
    from: &mut Card<M>,
    to: &mut Card<N>,
    kind: Kind,
    data: &[u8],
) -> Result<(), Failure> {
    let (sent, received) = (from.stats(), to.stats());
    send(place, from, &frame(kind, from.mac(), to.mac(), 5, data), large(kind))?;
    let (frame, meta) = receive(place, to, from.mac())?;
    ensure!(frame.get(kind.headers()..) == Some(data), "{} bytes of something else", frame.len());
    ensure!(meta.gso == large(kind).gso, "it came with {:?}", meta.gso);
    ensure!(
        from.stats().tx_gso == sent.tx_gso + 1 && to.stats().rx_gso == received.rx_gso + 1,
        "not counted"
    );
    Ok(())
}

/// Out of pages of our own, into such, with room before the frame.
fn own_pages(place: &Place, first: &mut First, second: &mut Second) -> Result<(), Failure> {
    let kind = KINDS[0].1;
    let data = payload(7, 1200);
    let backend = second.backend().ok_or("it has no backend")?;
    let share = || place.grants.share(backend, Access::ReadWrite);
    let mut page = share()?;
    let bytes = frame(kind, second.mac(), first.mac(), 7, &data);
    page.write_bytes(100, &bytes)?;
    let copied = (first.stats().copied_bytes, second.stats().copied_bytes);
    second.transmit_pages(&mut [FramePage::new(page, 100, bytes.len())], BLANK)?;
    second.publish()?;
    let mut spare = [FramePage::new(share()?, 0, 0)];
    let deadline = place.soon();
    loop {
        let seen = place.events.seq();
        match first.receive_pages(&mut spare)? {
            Some(_) => {
                let mut got = vec![0; spare[0].len];
                spare[0].page.read_bytes(spare[0].offset, &mut got)?;
                if got.get(6..12) == Some(&second.mac().0) {
                    ensure!(
                        got.get(kind.headers()..) == Some(&*data),
                        "{} bytes of something else",
                        got.len()
                    );
                    ensure!(spare[0].offset >= 256, "room of {} bytes", spare[0].offset);
                    break;
                }
            }
            None if first.arm()? => {}
            None => {
                ensure!(place.kernel.now() < deadline, "it did not arrive");
                place.events.wait_since(seen, Some(deadline));
            }
        }
    }
    ensure!(copied == (first.stats().copied_bytes, second.stats().copied_bytes), "bytes were copied");
    Ok(())
}

/// A multicast address.
pub(super) const GROUP: Mac = Mac([0x01, 0x00, 0x5e, 0x01, 0x02, 0x03]);

/// What the first card wants to hear, which began with nothing.
pub(super) fn multicast(place: &mut Place, first: &mut First, second: &mut Second, report: &mut Report) {
    let group = GROUP;
    report.check("net/multicast-not-wanted", || {
        ensure!(!hears(place, first, second, group)?, "it came");
        Ok(())
    });
    for (name, wanted) in [("net/multicast-wanted", true), ("net/multicast-no-more", false)] {
        report.check(name, || {
            let errors = first.stats().tx_errors;
            first.want_multicast(group, wanted)?;
            first.publish()?;
            settled(place, first, second, group, wanted)?;
            ensure!(first.stats().tx_errors == errors, "the backend refused the request");
            Ok(())
        });
    }
    for (name, filter) in [("net/multicast-unfiltered", false), ("net/multicast-filtered", true)] {
        report.check(name, || {
            first.filter_multicast(&mut place.xs, filter)?;
            settled(place, first, second, group, !filter)
        });
    }
}

/// Waits until the backend has done as asked.
pub(super) fn settled(
    place: &Place,
    first: &mut First,
    second: &mut Second,
    group: Mac,
    wanted: bool,
) -> Result<(), Failure> {
    let deadline = place.kernel.now() + SILENCE * 50;
    while hears(place, first, second, group)? != wanted {
        ensure!(place.kernel.now() < deadline, "nothing changes");
    }
    Ok(())
}

fn hears(place: &Place, first: &mut First, second: &mut Second, group: Mac) -> Result<bool, Failure> {
    let data: Vec<u8> = payload(8, 100);
    send(place, second, &frame(KINDS[0].1, second.mac(), group, 8, &data), TxMeta::default())?;
    let deadline = place.kernel.now() + SILENCE;
    while let Some((frame, _)) = next_from(place, first, second.mac(), deadline)? {
        if frame.get(..6) == Some(&group.0) {
            return Ok(true);
        }
    }
    Ok(false)
}

const _: () = assert!(FRAME_MAX > 60000 + 74);
