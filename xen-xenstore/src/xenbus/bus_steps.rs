//! The steps of a [`Bus`], compiled for either way to wait.

use xen_hypercall::DomId;

use super::{Ask, run, task, wait};
use crate::nodes::{parse, text};
use crate::wire::Refusal;
use crate::xenbus::bus::{Stage, is_ready};
use crate::xenbus::device::state_of;
use crate::xenbus::{Bus, BusDevice, BusEvent, XenbusState};
use crate::{Error, Path, Question};

/// Begins to look at the devices of a kind: `vif`, `vbd`, `console`.
///
/// # Errors
/// As [`Xenstore::watch`](crate::Xenstore::watch).
pub fn open<const DEVICES: usize, A: Ask>(ask: &mut A, kind: &str) -> task!(Result<Bus<DEVICES>, Error>) {
    run!({
        let root = Path::format(format_args!("device/{kind}"))?;
        let watch = wait!(ask.watch(&root))?;
        Ok(Bus::new(root, watch))
    })
}

/// Waits for the next event. None: the time is up of who asks; a task has no such time.
///
/// The future may be dropped: what was not told the next call tells.
///
/// # Errors
/// Why xenstore cannot be asked, and the next call asks again; [`Error::Stale`] when the watch on the directory has ended.
pub fn next<const DEVICES: usize, A: Ask>(
    bus: &mut Bus<DEVICES>,
    ask: &mut A,
) -> task!(Result<Option<BusEvent>, Error>) {
    run!({
        loop {
            bus.note(|watch| ask.has_fired(watch))?;
            if bus.is_stale {
                wait!(list(bus, ask))?;
            }
            for number in 0..DEVICES {
                if let Some(event) = wait!(look(bus, number, ask))? {
                    return Ok(Some(event));
                }
            }
            if bus.overflow != core::mem::replace(&mut bus.told, bus.overflow) {
                return Ok(Some(BusEvent::Overflow(bus.overflow)));
            }
            if !bus.is_stale && !wait!(ask.wait_any(&|each| bus.watches().for_each(each)))? {
                return Ok(None);
            }
        }
    })
}

/// Ends its watches.
///
/// # Errors
/// When xenstore cannot be asked; the watches are ended later then.
pub fn close<const DEVICES: usize, A: Ask>(bus: Bus<DEVICES>, ask: &mut A) -> task!(Result<(), Error>) {
    run!({
        let mut ended = Ok(());
        for watch in bus.watches() {
            ended = ended.and(wait!(ask.end_watch(watch)));
        }
        ended
    })
}

/// Looks which devices there are.
fn list<const DEVICES: usize, A: Ask>(bus: &mut Bus<DEVICES>, ask: &mut A) -> task!(Result<(), Error>) {
    run!({
        let (root, mut listed) = (bus.root, Ok(()));
        let mut question = core::iter::once(Question::directory(&root));
        wait!(ask.ask_all(&mut question, &mut |_, answer| match answer {
            Ok(names) => bus.list(names),
            Err(error) if error.is_absent() => bus.list(b""),
            // More than a message holds. Those that are known are looked at.
            Err(Error::Refused(_, Refusal::TooBig)) => bus.overflow = usize::MAX,
            Err(error) => listed = Err(error),
        }))?;
        listed?;
        bus.is_stale = false;
        Ok(())
    })
}

/// Looks at one place.
fn look<const DEVICES: usize, A: Ask>(
    bus: &mut Bus<DEVICES>,
    number: usize,
    ask: &mut A,
) -> task!(Result<Option<BusEvent>, Error>) {
    run!({
        let root = bus.root;
        let Some(slot) = bus.places.get_mut(number) else { return Ok(None) };
        let Some(place) = slot.as_mut() else { return Ok(None) };
        if place.is_there && place.is_stale {
            let found = wait!(read(ask, &root, place.index))?;
            place.is_stale = false;
            let same = match (&place.device, &found) {
                (Some(known), Some(found)) => known.backend == found.backend,
                (known, _) => known.is_none(),
            };
            if same {
                place.device = found;
            } else {
                // It was made anew, or is about to be: it is found again when the old one is told to have gone.
                place.is_there = false;
                bus.is_stale = true;
            }
        }
        if !place.is_there {
            if let Some(watch) = place.watch.take() {
                // If that fails the watch is ended later.
                ask.drop_watch(watch);
            }
            let (index, stage) = (place.index, place.stage);
            *slot = None;
            // There may be one that had no place.
            bus.is_stale |= bus.overflow > 0;
            return Ok((stage == Stage::Told).then_some(BusEvent::Removed(index)));
        }
        let Some(device) = place.device else { return Ok(None) };
        if place.stage == Stage::Unknown {
            place.stage = Stage::Found;
        }
        if place.watch.is_none() {
            let state = device.backend.join("state")?;
            match wait!(ask.watch(&state)) {
                Ok(watch) => (place.watch, place.looks) = (Some(watch), true),
                // There is nothing to be told of its backend before the next look at the directory.
                Err(Error::Refused(..) | Error::TooManyWatches) => {}
                Err(error) => return Err(error),
            }
        }
        if place.stage == Stage::Found {
            place.stage = Stage::Told;
            return Ok(Some(BusEvent::Added(device)));
        }
        if !place.looks {
            return Ok(None);
        }
        let (mut state, mut is_online) = (Ok(XenbusState::UNKNOWN), false);
        let questions = [Question::read(&device.backend, "state"), Question::read(&device.backend, "online")];
        wait!(ask.ask_all(&mut questions.into_iter(), &mut |tag, answer| match tag {
            0 => state = state_of(answer),
            _ => is_online = answer == Ok(b"1"),
        }))?;
        let state = state?;
        place.looks = false;
        Ok(is_ready(state, is_online).then_some(BusEvent::Ready(device)))
    })
}

/// What the toolstack says of a device; none while it is still writing, or what it says makes no sense.
fn read<A: Ask>(ask: &mut A, root: &Path, index: u32) -> task!(Result<Option<BusDevice>, Error>) {
    run!({
        let directory = root.join(index)?;
        let (mut backend, mut backend_id) = (Err(Error::BadPath), Err(Error::BadValue));
        let (mut virtual_device, mut device_type, mut type_len) = (None, [0; 16], 0);
        let names = ["backend", "backend-id", "virtual-device", "device-type"];
        let mut questions = names.iter().map(|name| Question::read(&directory, name));
        wait!(ask.ask_all(&mut questions, &mut |tag, answer| match tag {
            0 => backend = answer.and_then(text).and_then(Path::new),
            1 => backend_id = answer.and_then(parse),
            2 => virtual_device = answer.and_then(parse).ok(),
            _ => {
                let value = answer.unwrap_or_default();
                if let Some(room) = device_type.get_mut(..value.len()) {
                    room.copy_from_slice(value);
                    type_len = value.len();
                }
            }
        }))?;
        Ok(match (backend, backend_id) {
            (Ok(backend), Ok(id)) => Some(BusDevice {
                index,
                backend,
                backend_id: DomId(id),
                virtual_device,
                device_type,
                type_len,
            }),
            (Err(Error::Refused(..) | Error::BadPath | Error::NotText), _)
            | (_, Err(Error::Refused(..) | Error::BadValue | Error::NotText)) => None,
            (Err(error), _) | (_, Err(error)) => return Err(error),
        })
    })
}
