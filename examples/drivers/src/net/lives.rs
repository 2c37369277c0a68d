//! Two cards at work while their domain is saved, restored and migrated. What was under way may be lost, as networks lose frames;
//! what comes is whole, and afterwards all is as it was set.

use alloc::vec;
use alloc::vec::Vec;

use check_report::{Failure, Report, ensure};
use xen_hypercall::sched::Resumed;
use xen_netfront::{Error, FRAME_MAX, Followup, Mac, State, TxMeta};

use super::control::Hash;
use super::frames::{GROUP, settled};
use super::wire::{KINDS, frame, payload};
use super::{Card, EVERYTHING, First, Second, UNFILTERED, connect, life};
use crate::place::Place;

/// Frames of a burst, of this many bytes and more.
const BURST: u16 = 48;
const LEAST: usize = 400;
/// An address that nobody wants.
const OTHER: Mac = Mac([0x01, 0x00, 0x5e, 0x01, 0x02, 0x04]);

/// Runs them through the suspends that `plan` names.
pub(crate) fn run(place: &mut Place, plan: &str, report: &mut Report) {
    let Some(mut first) = connect::<3>(place, report, "net/connect", 0, EVERYTHING) else { return };
    let Some(mut second) = connect::<1>(place, report, "net/connect-another", 1, UNFILTERED) else { return };
    let mut hash = None;
    report.check("net/control-hash", || {
        hash = Some(Hash::set(place, &mut first)?);
        Ok(())
    });
    let Some(hash) = hash else { return };
    report.check("net/multicast-wanted", || {
        first.want_multicast(GROUP, true)?;
        first.publish()?;
        settled(place, &mut first, &mut second, GROUP, true)
    });
    as_it_was_set(place, &mut first, &mut second, &hash, report);
    for (number, how) in (1..).zip(plan.split(',')) {
        report.note(format_args!("please {how} {number}"));
        report.check("net/at-work", || until_asked(place, &mut first, &mut second));
        suspended(place, &mut first, &mut second, how, report);
        report.check("net/frames-flow-again", || life::again(place, &mut first, &mut second));
        as_it_was_set(place, &mut first, &mut second, &hash, report);
    }
    life::close(place, second, report, "net/close-another");
    life::close(place, first, report, "net/close");
}

/// What both are like.
fn shape(first: &First, second: &Second) -> impl PartialEq + core::fmt::Debug + use<> {
    let split = |a: Option<u32>, b: Option<u32>| a != b;
    let ports = [first.channel(0), first.receive_channel(0)].map(|channel| channel.map(|it| it.port().0));
    let of_first = (first.queues(), first.features(), first.multicast(), first.mac(), first.mtu());
    (of_first, split(ports[0], ports[1]), second.features(), second.mac(), second.mtu())
}

fn suspended(place: &mut Place, first: &mut First, second: &mut Second, how: &str, report: &mut Report) {
    let before = shape(first, second);
    let mut resumed = None;
    report.check("net/suspended", || {
        // Nobody takes them before.
        burst(first, second.mac())?;
        burst(second, first.mac())?;
        let outcome = place.suspend(&mut (&mut *first, &mut *second))?;
        ensure!(outcome.absent == 0, "{} of the cards are not there", outcome.absent);
        resumed = Some(outcome.resumed);
        Ok(())
    });
    let Some(resumed) = resumed else { return };
    report.check("net/as-asked-for", || {
        let in_place = resumed == Resumed::InPlace;
        ensure!(in_place == (how == "checkpoint"), "{resumed:?} after a {how}");
        ensure!(shape(first, second) == before, "{before:?}, and then {:?}", shape(first, second));
        let states = (first.state(), second.state());
        ensure!(states == (State::Connected, State::Connected), "they are {states:?}");
        let followups = [first.take_followup(), second.take_followup()];
        let wanted = if in_place { Followup::empty() } else { Followup::ANNOUNCE };
        ensure!(followups == [wanted; 2], "{followups:?} is to be done");
        Ok(())
    });
}

/// What the first card was told is in force.
fn as_it_was_set(place: &Place, first: &mut First, second: &mut Second, hash: &Hash, report: &mut Report) {
    report.check("net/packets-go-by-their-hash", || {
        drain(first)?;
        hash.check(place, first, second)
    });
    report.check("net/multicast-is-heard", || settled(place, first, second, GROUP, true));
    report.check("net/other-multicast-is-not", || settled(place, first, second, OTHER, false));
}

/// Sends frames to and fro until the domain is to be suspended.
fn until_asked(place: &mut Place, first: &mut First, second: &mut Second) -> Result<(), Failure> {
    let (deadline, mut seen) = (place.later(), [0; 2]);
    loop {
        burst(first, second.mac())?;
        burst(second, first.mac())?;
        seen[0] += take(place, first, second.mac())?;
        seen[1] += take(place, second, first.mac())?;
        if place.is_asked()? {
            break;
        }
        ensure!(place.now() < deadline, "nobody asks for a suspend");
    }
    ensure!(seen[0] > 0 && seen[1] > 0, "frames that came: {seen:?}");
    Ok(())
}

/// Sends some, as long as there is room.
fn burst<const N: usize>(card: &mut Card<N>, to: Mac) -> Result<(), Failure> {
    for port in 0..BURST {
        let frame = frame(KINDS[0].1, card.mac(), to, port, &payload(20, LEAST + usize::from(port)));
        match card.transmit_with(&[&frame], TxMeta::default()) {
            Err(Error::Full) => break,
            sent => sent?,
        }
    }
    Ok(card.publish()?)
}

/// Takes as many as were sent, or those that come in a while; each is one of them.
fn take<const N: usize>(place: &Place, card: &mut Card<N>, from: Mac) -> Result<u32, Failure> {
    let deadline = place.now() + super::SILENCE;
    let mut count = 0;
    while count < u32::from(BURST) {
        let Some((frame, _)) = super::next_from(place, card, from, deadline)? else { break };
        let data = frame.get(KINDS[0].1.headers()..).unwrap_or_default();
        // The others are of the checks.
        if data.len() >= LEAST && data.len() < LEAST + usize::from(BURST) {
            ensure!(data == payload(20, data.len()), "a frame of {} bytes is another", frame.len());
            count += 1;
        }
    }
    Ok(count)
}

/// Takes what came before.
fn drain<const N: usize>(card: &mut Card<N>) -> Result<(), Failure> {
    let mut buffer: Vec<u8> = vec![0; FRAME_MAX];
    while card.receive_with(&mut buffer)?.is_some() {}
    Ok(())
}
