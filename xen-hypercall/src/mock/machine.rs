//! The machine: domains, handlers, actors, time and the trace.

use core::any::{Any, TypeId};
use core::sync::atomic::AtomicU16;
use core::time::Duration;
use std::boxed::Box;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::format;
use std::string::String;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::vec::Vec;

use super::domain::{Due, Shared};
use super::suspend::Suspension;
use super::turn::Turn;
use super::{Dice, HypercallFaults, MockDomain};
use crate::{DomId, Errno, HypercallNr, VcpuId};

type Handler = Box<dyn FnMut(&MockDomain, [usize; 5]) -> isize + Send>;
type Actor = Box<dyn FnMut(&MockXen) -> bool + Send>;
type TimerHook = Box<dyn FnMut(&MockDomain, VcpuId) + Send>;

/// Lines that the trace keeps; older ones go.
const TRACE_LINES: usize = 4000;

/// A machine with Xen on it. Clones are handles to the same machine, and so are [`MockDomain`]s. The machine goes when the
/// last of them does; those of its own far sides do not count, see [`inside`](Self::inside).
///
/// Several threads may be vCPUs of its domains: Xen and the far sides act for one of them at a time. What a test asks of a far
/// side itself, such as to close a device, is one thread's business.
#[derive(Clone)]
pub struct MockXen {
    machine: Arc<Mutex<State>>,
    turn: Arc<Turn>,
    /// None: what has this handle is a part of the machine.
    _user: Option<Arc<User>>,
}

/// All that use a machine from outside.
struct User(Arc<Mutex<State>>);

impl Drop for User {
    fn drop(&mut self) {
        dismantle(&self.0);
    }
}

/// Tells whether a machine is there still; see [`MockXen::downgrade`].
#[derive(Clone, Debug)]
pub struct WeakXen(Weak<Mutex<State>>);

impl WeakXen {
    /// Whether anything of the machine is left.
    pub fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) domains: BTreeMap<DomId, Shared>,
    handlers: BTreeMap<usize, Option<Handler>>,
    actors: Vec<(ActorId, String, Option<Actor>)>,
    next_actor: u64,
    timer_hook: Option<TimerHook>,
    pub(super) suspension: Suspension,
    faults: Option<(Dice, HypercallFaults)>,
    now: Duration,
    trace: VecDeque<String>,
    untraced: bool,
    extensions: HashMap<TypeId, Box<dyn Any + Send>>,
}

/// Names an actor, to take it away again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ActorId(u64);

impl std::fmt::Debug for MockXen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MockXen").field("now", &self.now()).finish_non_exhaustive()
    }
}

impl Default for MockXen {
    fn default() -> Self {
        Self::new()
    }
}

impl MockXen {
    /// A machine without domains, at time zero. The calls of this crate's own modules are answered; event channels
    /// and grant tables once their crates' mocks are installed.
    pub fn new() -> Self {
        let machine: Arc<Mutex<State>> = Arc::default();
        let user = Some(Arc::new(User(Arc::clone(&machine))));
        let machine = Self { machine, turn: Arc::default(), _user: user };
        super::handlers::install(&machine);
        machine
    }

    /// A handle for what is a part of the machine itself, such as the actor that is the other side of a device: it does
    /// not keep the machine from ending. When the last other handle goes, actors, handlers and what mocks keep here go, and
    /// with them the machine's memory. The domains of such a handle are of that kind, too.
    #[must_use]
    pub fn inside(&self) -> Self {
        Self { machine: Arc::clone(&self.machine), turn: Arc::clone(&self.turn), _user: None }
    }

    /// What tells, later, whether the machine is gone: for a test that nothing keeps it.
    pub fn downgrade(&self) -> WeakXen {
        WeakXen(Arc::downgrade(&self.machine))
    }

    /// A panic elsewhere leaves the state as consistent as the code that panicked did; tests go on to report it.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A domain; it is made when first asked for.
    pub fn domain(&self, id: DomId) -> MockDomain {
        let mut state = self.state();
        let new = || (Arc::new(AtomicU16::new(id.0)), Arc::default());
        let shared = state.domains.entry(id).or_insert_with(new).clone();
        drop(state);
        MockDomain::new(self.clone(), shared)
    }

    /// Whether a domain was ever asked for.
    pub fn has_domain(&self, id: DomId) -> bool {
        self.state().domains.contains_key(&id)
    }

    /// Answers hypercall `nr` by `handler` from now on. The handler gets the calling domain and may make hypercalls
    /// itself, though not of the same number.
    pub fn register(
        &self,
        nr: HypercallNr,
        handler: impl FnMut(&MockDomain, [usize; 5]) -> isize + Send + 'static,
    ) {
        self.state().handlers.insert(nr.0, Some(Box::new(handler)));
    }

    /// Calls `hook` when a timer of a domain's vCPU is due, to raise its virtual interrupt.
    pub fn set_timer_hook(&self, hook: impl FnMut(&MockDomain, VcpuId) + Send + 'static) {
        self.state().timer_hook = Some(Box::new(hook));
    }

    /// Makes hypercalls fail from now on as `faults` says; [`HypercallFaults::new`] ends it.
    pub fn set_faults(&self, dice: Dice, faults: HypercallFaults) {
        self.state().faults = Some((dice, faults));
    }

    fn fault(&self, caller: DomId, nr: HypercallNr, command: usize) -> Option<Errno> {
        let state = self.state();
        let (dice, faults) = state.faults.as_ref()?;
        faults.roll(dice, caller, nr, command)
    }

    pub(super) fn call(&self, caller: &MockDomain, nr: HypercallNr, args: [usize; 5]) -> isize {
        let who = || {
            let vcpu = if caller.vcpus() > 1 { format!("v{}", caller.vcpu().0) } else { String::new() };
            format!("{}{vcpu}", caller.id())
        };
        if let Some(errno) = self.fault(caller.id(), nr, args[0]) {
            self.trace(|| format!("{} {}({}, ..) is made to fail: {errno}", who(), nr.name(), args[0]));
            return errno.as_return();
        }
        let turn = self.turn.take();
        let taken = self.state().handlers.get_mut(&nr.0).and_then(Option::take);
        let result = match taken {
            // Either there is no handler, or it is at work, further up the stack.
            None if nr == HypercallNr::MULTICALL => Errno::EINVAL.as_return(),
            None => Errno::ENOSYS.as_return(),
            Some(mut handler) => {
                // No lock is held here: the handler may use the machine.
                let result = handler(caller, args);
                if let Some(place @ None) = self.state().handlers.get_mut(&nr.0) {
                    *place = Some(handler);
                }
                result
            }
        };
        drop(turn);
        self.trace(|| format!("{} {}({}, ..) = {}", who(), nr.name(), args[0], describe(result)));
        result
    }

    /// Adds a far side. `step` does what can be done at once, and returns whether that was anything. A handle to the machine
    /// that it keeps should be one for [`inside`](Self::inside).
    pub fn add_actor(&self, name: &str, step: impl FnMut(&Self) -> bool + Send + 'static) -> ActorId {
        let mut state = self.state();
        let id = ActorId(state.next_actor);
        state.next_actor += 1;
        state.actors.push((id, name.into(), Some(Box::new(step))));
        id
    }

    /// Takes a far side away.
    pub fn remove_actor(&self, id: ActorId) {
        self.state().actors.retain(|(other, ..)| *other != id);
    }

    /// Takes away every actor, handler and what other mocks keep here, at once and for good. That happens by itself when the
    /// last handle goes, unless an actor has one that is not [`inside`](Self::inside).
    pub fn dismantle(&self) {
        dismantle(&self.machine);
    }

    /// Lets every actor act once, in the order they were added; returns whether any did anything.
    pub fn step(&self) -> bool {
        let _turn = self.turn.take();
        let mut state = self.state();
        // Those that actors add meanwhile act in the next step.
        let (mut from, end) = (0, state.next_actor);
        let mut progress = false;
        // They are in the order of their numbers.
        while let Some((id, _, place)) = state.actors.iter_mut().find(|(id, ..)| (from..end).contains(&id.0))
        {
            let id = *id;
            from = id.0 + 1;
            // Absent: an actor that is acting at this moment, further up the stack.
            let Some(mut actor) = place.take() else { continue };
            drop(state);
            progress |= actor(self);
            state = self.state();
            if let Some((.., place)) = state.actors.iter_mut().find(|(other, ..)| *other == id) {
                *place = Some(actor);
            } else {
                // What it holds may use the machine when it goes.
                drop(state);
                drop(actor);
                state = self.state();
            }
        }
        progress
    }

    /// Steps until no actor does anything, at most `max_steps` times; returns how many steps did something.
    pub fn run_until_idle(&self, max_steps: usize) -> usize {
        (0..max_steps).take_while(|_| self.step()).count()
    }

    /// Virtual time since the machine began.
    pub fn now(&self) -> Duration {
        self.state().now
    }

    /// Lets time pass; timers that become due fire in order.
    pub fn advance(&self, time: Duration) {
        let _turn = self.turn.take();
        let end = self.now().saturating_add(time);
        while let Some((at, domain, due)) = self.next_due().filter(|(at, ..)| *at <= end) {
            {
                let mut state = self.state();
                state.now = state.now.max(at);
            }
            match due {
                Due::Timer(vcpu) => {
                    domain.with_vcpu(vcpu, |state| state.fire(at));
                    self.raise_timer(&domain, vcpu);
                }
                Due::Watchdog(index) => domain.bite(index),
            }
        }
        let mut state = self.state();
        state.now = state.now.max(end);
    }

    /// Raises a vCPU's timer interrupt now.
    pub(super) fn raise_timer(&self, domain: &MockDomain, vcpu: VcpuId) {
        let hook = self.state().timer_hook.take();
        if let Some(mut hook) = hook {
            hook(domain, vcpu);
            self.state().timer_hook.get_or_insert(hook);
        }
    }

    /// When the next timer or watchdog of any domain is due. None: there is none.
    pub fn next_timer(&self) -> Option<Duration> {
        self.next_due().map(|(at, ..)| at)
    }

    /// What is due first, and whose it is.
    pub(super) fn next_due(&self) -> Option<(Duration, MockDomain, Due)> {
        let ids: Vec<DomId> = self.state().domains.keys().copied().collect();
        ids.into_iter()
            .filter_map(|id| {
                let domain = self.domain(id);
                domain.next_due().map(|(at, due)| (at, domain, due))
            })
            .min_by_key(|(at, ..)| *at)
    }

    /// Adds a line to the trace.
    pub fn trace(&self, line: impl FnOnce() -> String) {
        if self.state().untraced {
            return;
        }
        let line = line();
        let mut state = self.state();
        if state.trace.len() == TRACE_LINES {
            state.trace.pop_front();
        }
        let now = state.now;
        state.trace.push_back(format!("[{:>10.6}] {line}", now.as_secs_f64()));
    }

    /// Whether lines are added to the trace, as they are at first: where a great many machines are tried, the time that
    /// goes into the text is most of it.
    pub fn set_trace(&self, on: bool) {
        self.state().untraced = !on;
    }

    /// What passed between the domains, oldest first, a line each.
    pub fn trace_text(&self) -> String {
        self.state().trace.iter().fold(String::new(), |text, line| text + line + "\n")
    }

    /// State that another crate's mock keeps with the machine, found by its type.
    pub fn extension<T: Any + Send + Default>(&self) -> Arc<Mutex<T>> {
        let mut state = self.state();
        let slot = state
            .extensions
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Box::new(Arc::new(Mutex::new(T::default()))));
        match slot.downcast_ref::<Arc<Mutex<T>>>() {
            Some(found) => Arc::clone(found),
            None => unreachable!("keyed by the type itself"),
        }
    }
}

fn dismantle(machine: &Mutex<State>) {
    let mut state = machine.lock().unwrap_or_else(PoisonError::into_inner);
    let actors = core::mem::take(&mut state.actors);
    let handlers = core::mem::take(&mut state.handlers);
    let extensions = core::mem::take(&mut state.extensions);
    let hook = state.timer_hook.take();
    let suspension = core::mem::take(&mut state.suspension);
    // What is dropped may use the machine once more.
    drop(state);
    drop((actors, handlers, extensions, hook, suspension));
}

fn describe(result: isize) -> String {
    match Errno::check(result) {
        Ok(value) => format!("{value}"),
        Err(error) => format!("{error}"),
    }
}
