//! Events that go wrong on their way.

use std::format;
use std::vec::Vec;

use xen_hypercall::DomId;
use xen_hypercall::mock::{Chance, Dice, MockXen};

use super::ports::Machine;
use super::with;
use crate::Port;

/// What goes wrong with events, and how often. Xen itself does none of this: lost events are a peer's that forgets to send,
/// late and doubled ones are what crossing events look like, and without reason any peer may send.
///
/// It concerns what [`Channel::notify`](crate::Channel::notify) sends and the virtual interrupts that Xen raises, but neither
/// [`inject`](super::inject) nor the event of a fresh binding.
///
/// ```
/// use xen_evtchn::mock::{self, Faults};
/// use xen_hypercall::mock::{Chance, Dice, MockXen};
///
/// let xen = MockXen::new();
/// mock::install(&xen);
/// let mut faults = Faults::new();
/// faults.lost = Chance::percent(5);
/// mock::set_faults(&xen, Dice::new(1), faults);
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// It does not arrive.
    pub lost: Chance,
    /// It arrives some steps of the machine later.
    pub late: Chance,
    /// It arrives, and some steps of the machine later once more.
    pub doubled: Chance,
    /// Another port of the same domain has an event, too.
    pub spurious: Chance,
    /// Only with events for this domain; none: with all.
    pub only: Option<DomId>,
}

impl Faults {
    /// Nothing goes wrong.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Most steps that an event is late by.
const LATEST: u64 = 4;

/// Faults at work.
#[derive(Default)]
pub(super) struct Trouble {
    setting: Option<(Dice, Faults)>,
    /// Events on their way: steps to go, and where to.
    late: Vec<(u64, DomId, u32)>,
    /// The machine knows of the late ones.
    acting: bool,
}

/// What happens with an event.
pub(super) enum Fate {
    Arrives,
    Vanishes,
}

impl Trouble {
    /// What happens with an event for `domain`, whose other open ports are `ports`. Returns also which of those has
    /// an event without reason.
    pub(super) fn befall(
        &mut self,
        xen: &MockXen,
        domain: DomId,
        port: u32,
        ports: impl Iterator<Item = u32>,
    ) -> (Fate, Option<u32>) {
        let Some((dice, faults)) = &self.setting else { return (Fate::Arrives, None) };
        if faults.only.is_some_and(|only| only != domain) {
            return (Fate::Arrives, None);
        }
        let say = |what: &str, port| xen.trace(|| format!("{domain}: the event of port {port} {what}"));
        let spurious = dice.hit(faults.spurious).then(|| {
            let ports: Vec<u32> = ports.collect();
            ports
                .get(dice.below(ports.len() as u64) as usize)
                .copied()
                .inspect(|port| say("has no cause", *port))
        });
        let fate = if dice.hit(faults.lost) {
            say("is lost", port);
            Fate::Vanishes
        } else if dice.hit(faults.late) {
            say("is late", port);
            self.late.push((1 + dice.below(LATEST), domain, port));
            Fate::Vanishes
        } else {
            if dice.hit(faults.doubled) {
                say("will come twice", port);
                self.late.push((1 + dice.below(LATEST), domain, port));
            }
            Fate::Arrives
        };
        (fate, spurious.flatten())
    }

    /// One step of the machine; returns which events arrive, or none if none is on its way.
    fn step(&mut self) -> Option<Vec<(DomId, u32)>> {
        if self.late.is_empty() {
            return None;
        }
        for (steps, ..) in &mut self.late {
            *steps -= 1;
        }
        let due = self.late.iter().filter(|(steps, ..)| *steps == 0).map(|&(_, domain, port)| (domain, port));
        let due = due.collect();
        self.late.retain(|(steps, ..)| *steps > 0);
        Some(due)
    }

    /// Nor does a domain that is gone.
    pub(super) fn forget_all(&mut self, domain: DomId) {
        self.late.retain(|(_, to, _)| *to != domain);
    }

    /// A closed port gets no events.
    pub(super) fn forget(&mut self, domain: DomId, port: u32) {
        self.late.retain(|(_, to, late)| (*to, *late) != (domain, port));
    }
}

/// Makes events go wrong from now on; [`Faults::new`] ends it, and lets those that are late arrive.
pub fn set_faults(xen: &MockXen, dice: Dice, faults: Faults) {
    let acting = with(xen, |machine| {
        machine.trouble.setting = Some((dice, faults));
        core::mem::replace(&mut machine.trouble.acting, true)
    });
    if !acting {
        xen.add_actor("late events", |xen| with(xen, |machine| arrive(xen, machine)));
    }
}

fn arrive(xen: &MockXen, machine: &mut Machine) -> bool {
    let Some(due) = machine.trouble.step() else { return false };
    for (domain, port) in due {
        machine.inject(&xen.domain(domain), Port(port));
    }
    true
}
