//! What becomes of cards: link down, a backend that is started again, unplugged, closed.

use alloc::boxed::Box;
use core::time::Duration;

use xen_hypercall::Wait;
use xen_netfront::{State, TxMeta};

use super::wire::{KINDS, frame, payload};
use super::{Card, First, Second, next_from, send};
use crate::place::Place;
use crate::report::{Failure, Report, ensure};

/// How long nothing need happen before a card is looked at again.
const TURN: Duration = Duration::from_millis(20);
/// What dom0 writes when a backend was started again.
const RESTARTED: &str = "data/restarted";

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
                second.service(&mut place.xs)?;
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
}

/// Looks again and again.
fn until(
    place: &mut Place,
    mut done: impl FnMut(&mut Place) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let deadline = place.soon();
    while !done(place)? {
        ensure!(place.kernel.now() < deadline, "nothing happens");
        place.events.wait(Some(place.kernel.now() + TURN));
    }
    Ok(())
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
fn again(place: &mut Place, first: &mut First, second: &mut Second) -> Result<(), Failure> {
    let deadline = place.soon();
    loop {
        if second.service(&mut place.xs)? == State::Closed {
            second.reconnect(&mut place.xs, deadline)?;
        }
        // The bridge may take a while to have the other end.
        if traffic(place, first, second)? {
            return Ok(());
        }
        ensure!(place.kernel.now() < deadline, "no frame passes any more; the card is {}", second.state());
    }
}
