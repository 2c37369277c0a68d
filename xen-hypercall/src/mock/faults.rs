//! Hypercalls that fail now and then, and what to look at when a test does.

use std::eprintln;
use std::vec::Vec;

use super::{Chance, Dice, MockXen};
use crate::{DomId, Errno, HypercallNr};

/// Which hypercalls fail, how often, and with which error. A call that fails does nothing else.
///
/// ```
/// use xen_hypercall::mock::{Chance, Dice, HypercallFaults, MockXen};
/// use xen_hypercall::{DomId, Errno, HypercallNr, version};
///
/// let xen = MockXen::new();
/// let (guest, dom0) = (xen.domain(DomId(1)), xen.domain(DomId(0)));
/// xen.set_faults(
///     Dice::new(1),
///     HypercallFaults::new().only(DomId(1)).fail(HypercallNr::XEN_VERSION, Chance::ALWAYS, Errno::EAGAIN),
/// );
/// assert_eq!(version::version(&guest), Err(Errno::EAGAIN));
/// assert_eq!(version::version(&dom0), Ok((4, 17)));
/// ```
#[derive(Clone, Debug, Default)]
pub struct HypercallFaults {
    rules: Vec<Rule>,
    only: Option<DomId>,
}

#[derive(Clone, Debug)]
struct Rule {
    nr: HypercallNr,
    command: Option<usize>,
    chance: Chance,
    errno: Errno,
}

impl HypercallFaults {
    /// None fails.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only calls of this domain fail.
    #[must_use]
    pub fn only(self, domain: DomId) -> Self {
        Self { only: Some(domain), ..self }
    }

    /// Calls of number `nr` fail with `errno`. Of several rules that a call falls under, each has its chance.
    #[must_use]
    pub fn fail(self, nr: HypercallNr, chance: Chance, errno: Errno) -> Self {
        self.with(Rule { nr, command: None, chance, errno })
    }

    /// The same, for one command of the call: its first argument.
    #[must_use]
    pub fn fail_command(self, nr: HypercallNr, command: usize, chance: Chance, errno: Errno) -> Self {
        self.with(Rule { nr, command: Some(command), chance, errno })
    }

    fn with(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// The error that this call is to fail with.
    pub(super) fn roll(&self, dice: &Dice, caller: DomId, nr: HypercallNr, command: usize) -> Option<Errno> {
        if self.only.is_some_and(|only| only != caller) {
            return None;
        }
        let mut rules = self.rules.iter().filter(|rule| rule.nr == nr);
        rules
            .find(|rule| rule.command.is_none_or(|only| only == command) && dice.hit(rule.chance))
            .map(|rule| rule.errno)
    }
}

/// Prints a machine's trace to standard error if it is dropped by a panic: what passed between the domains, when a
/// test fails.
///
/// ```
/// use xen_hypercall::mock::{MockXen, TraceOnPanic};
///
/// let xen = MockXen::new();
/// let _trace = TraceOnPanic::new(&xen);
/// // What asserts and may fail.
/// ```
#[derive(Debug)]
pub struct TraceOnPanic(MockXen);

impl TraceOnPanic {
    /// Watches over this machine.
    pub fn new(xen: &MockXen) -> Self {
        Self(xen.clone())
    }
}

impl Drop for TraceOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("-- what passed on the machine, oldest first --\n{}--", self.0.trace_text());
        }
    }
}
