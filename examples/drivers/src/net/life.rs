//! What becomes of cards: link down, a backend that is started again or stays away for a while, unplugged, closed; and one
//! whose backend is not trusted.

use alloc::boxed::Box;
use core::time::Duration;

use check_report::{Failure, Report, ensure};
use xen_gnttab::Access;
use xen_hypercall::Wait;
use xen_netfront::{Error, FramePage, State, TxMeta};

use super::wire::{KINDS, frame, payload};
use super::{Card, First, Second, next_from, receive, send};
use crate::place::Place;

/// How long nothing need happen before a card is looked at again.
const TURN: Duration = Duration::from_millis(20);
/// What dom0 writes when a backend was started again.
const RESTARTED: &str = "data/restarted";
/// And when it was taken away, and when it is back.
const AWAY: &str = "data/away";
const BACK: &str = "data/back";

pub(super) fn close<const N: usize>(place: &mut Place, card: Box<Card<N>>, report: &mut Report, name: &str) {
    report.check(name, || {
        let deadline = place.soon();
        Ok(card.close(&mut place.xs, deadline)?)
    });
}

pub(super) fn run(place: &mut Place, first: &mut First, second: &mut Second, report: &mut Report) {
    for (ask, name, up) in [
        ("please cut the link of vif 1", "net/link-down", false),
        ("please restore the link of vif 1", "net/link-up", true),
    ] {
        report.note(format_args!("{ask}"));
        report.check(name, || {
            until(place, |place| {
                let state = second.service(&mut place.xs)?;
                ensure!(state == State::Connected, "the card is {state}");
                Ok(second.is_link_up() == up)
            })
        });
    }
    report.note(format_args!("please restart the backend of vif 1"));
    report.check("net/backend-restarted", || {
        // Linux' backend takes up the rings where they are, so there may be nothing to see.
        until(place, |place| {
            // What is sent meanwhile may be lost.
            let _ = traffic(place, first, second);
            Ok(second.service(&mut place.xs)? != State::Connected || place.xs.read(RESTARTED).is_ok())
        })?;
        again(place, first, second)
    });
    report.note(format_args!("please take the backend of vif 1 away"));
    report.check("net/backend-away", || away(place, first, second));
    report.note(format_args!("please bring the backend of vif 1 back"));
    report.check("net/backend-back", || {
        until(place, |place| {
            let _ = offer(place, first, second);
            Ok(place.xs.read(BACK).is_ok())
        })?;
        again(place, first, second)
    });
    report.note(format_args!("please unplug vif 1"));
    report.check("net/unplugged-and-plugged-in", || {
        until(place, |place| {
            let _ = traffic(place, first, second);
            Ok(second.service(&mut place.xs)? == State::Closed)
        })?;
        let before = second.stats().reconnects;
        until(place, |place| second.is_backend_waiting(&mut place.xs).map_err(Failure::from))?;
        again(place, first, second)?;
        ensure!(second.stats().reconnects > before, "it was never away");
        Ok(())
    });
    report.check("net/untrusted", || untrusted(place, first, second));
}

/// Nobody is behind the second card any more, and nobody says so: it takes frames until it is full, then no more.
fn away(place: &mut Place, first: &mut First, second: &mut Second) -> Result<(), Failure> {
    until(place, |place| {
        let _ = traffic(place, first, second);
        Ok(place.xs.read(AWAY).is_ok())
    })?;
    let sent = second.stats().tx_frames;
    let mut refused = 0;
    for _ in 0..4 * super::EVERYTHING.tx_pages {
        refused += u32::from(!offer(place, first, second)?);
    }
    let state = second.service(&mut place.xs)?;
    ensure!(refused > 0, "{} frames were taken by nobody; it is {state}", second.stats().tx_frames - sent);
    ensure!(matches!(state, State::Connected | State::Closing | State::Closed), "it is {state}");
    ensure!(!passes(place, first, second)?, "a frame came out of nowhere");
    // The other card has a backend of its own.
    ensure!(first.service(&mut place.xs)? == State::Connected, "the first one is {}", first.state());
    Ok(())
}

/// Offers both cards a frame to send; whether the second took it.
fn offer(place: &mut Place, first: &mut First, second: &mut Second) -> Result<bool, Failure> {
    let (kind, data) = (KINDS[0].1, payload(11, 500));
    // What the first one sends goes to the bridge, which has nobody to give it to.
    send(place, first, &frame(kind, first.mac(), second.mac(), 11, &data), TxMeta::default())?;
    second.service(&mut place.xs)?;
    let frame = frame(kind, second.mac(), first.mac(), 11, &data);
    match second.transmit_with(&[&frame], TxMeta::default()).and_then(|()| second.publish()) {
        Ok(()) => Ok(true),
        Err(Error::Full | Error::Closed) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The backend gets copies: what is in the caller's pages stays there, and so do the pages.
fn untrusted(place: &mut Place, first: &mut First, second: &mut Second) -> Result<(), Failure> {
    ensure!(first.is_trusted() && !second.is_trusted(), "it is trusted");
    let (kind, data) = (KINDS[0].1, payload(12, 1200));
    let bytes = frame(kind, second.mac(), first.mac(), 12, &data);
    let mut page = place.grants.share(second.backend().ok_or("it has no backend")?, Access::ReadWrite)?;
    page.write_bytes(100, &bytes)?;
    let (gref, copied) = (page.gref(), second.stats().copied_bytes);
    let mut part = [FramePage::new(page, 100, bytes.len())];
    second.transmit_pages(&mut part, TxMeta::default())?;
    second.publish()?;
    ensure!(part[0].page.gref() == gref, "the page went to the backend");
    ensure!(second.stats().copied_bytes - copied >= bytes.len() as u64, "nothing was copied");
    // Frames of before may be under way.
    let deadline = place.soon();
    while receive(place, first, second.mac())?.0.get(kind.headers()..) != Some(&*data) {
        ensure!(place.kernel.now() < deadline, "it did not arrive");
    }
    let back = frame(kind, first.mac(), second.mac(), 12, &data);
    send(place, first, &back, TxMeta::default())?;
    while receive(place, second, first.mac())?.0.get(kind.headers()..) != Some(&*data) {
        ensure!(place.kernel.now() < deadline, "nothing came back");
    }
    Ok(())
}

/// Looks again and again.
fn until(
    place: &mut Place,
    mut done: impl FnMut(&mut Place) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let deadline = place.soon();
    loop {
        let seen = place.events.seq();
        if done(place)? {
            return Ok(());
        }
        ensure!(place.kernel.now() < deadline, "nothing happens");
        place.events.wait_since(seen, Some(place.kernel.now() + TURN));
    }
}

/// Whether a frame gets from the first card to the second and back.
fn traffic(place: &Place, first: &mut First, second: &mut Second) -> Result<bool, Failure> {
    Ok(passes(place, first, second)? && passes(place, second, first)?)
}

fn passes<const M: usize, const N: usize>(
    place: &Place,
    from: &mut Card<M>,
    to: &mut Card<N>,
) -> Result<bool, Failure> {
    let (kind, data) = (KINDS[0].1, payload(10, 500));
    send(place, from, &frame(kind, from.mac(), to.mac(), 10, &data), TxMeta::default())?;
    let deadline = place.kernel.now() + TURN;
    let came = next_from(place, to, from.mac(), deadline)?;
    Ok(came.is_some_and(|(frame, _)| frame.get(kind.headers()..) == Some(&*data)))
}

/// Frames pass again, after the second card was connected anew where need be.
pub(super) fn again(place: &mut Place, first: &mut First, second: &mut Second) -> Result<(), Failure> {
    let deadline = place.soon();
    loop {
        if second.service(&mut place.xs)? == State::Closed {
            second.reconnect(&mut place.xs, deadline)?;
        }
        // The bridge may take a while to have the other end.
        if second.state() != State::Closing && traffic(place, first, second)? {
            return Ok(());
        }
        ensure!(place.kernel.now() < deadline, "no frame passes any more; the card is {}", second.state());
    }
}
