//! A domain that is suspended, and goes on: in a new domain on another machine, or where it was.

use core::sync::atomic::Ordering::{Relaxed, Release};
use core::time::Duration;
use std::boxed::Box;
use std::format;
use std::vec::Vec;

use super::vcpu::Vcpu;
use super::{MockDomain, MockXen};
use crate::abi::shared_info as at;
use crate::hvm::HvmParam;
use crate::sched::{Resumed, ShutdownCode};
use crate::{DomId, SharedInfo};

type Toolstack = Box<dyn FnMut(&MockDomain) -> Resumed + Send>;
type Hook = Box<dyn FnMut(&MockDomain, DomId) + Send>;

/// The time of day, in Unix time, when virtual time is zero.
const WALL_CLOCK: Duration = Duration::from_secs(1_795_910_400);

/// Who does what with a domain that is suspended.
#[derive(Default)]
pub(super) struct Suspension {
    toolstack: Option<Toolstack>,
    hooks: Vec<Hook>,
}

impl MockXen {
    /// Decides what becomes of a domain that suspends itself (`SHUTDOWN_suspend`), as a toolstack does. `toolstack` gets the
    /// domain, which stands still. It may [migrate](Self::migrate) it, and plug its devices in, where it goes on. Without
    /// one, each domain is migrated.
    pub fn set_toolstack(&self, toolstack: impl FnMut(&MockDomain) -> Resumed + Send + 'static) {
        self.state().suspension.toolstack = Some(Box::new(toolstack));
    }

    /// Calls `hook` when a domain has been migrated: with the domain, and the number that it had before. For what another
    /// crate's mock keeps of a domain, which does not go with it.
    pub fn on_migration(&self, hook: impl FnMut(&MockDomain, DomId) + Send + 'static) {
        self.state().suspension.hooks.push(Box::new(hook));
    }

    /// Saves a domain and restores it, or moves it to another machine, which is the same to the domain. All of its handles
    /// are handles to the new domain.
    ///
    /// Its memory stays what it was, but for the frames of Xen's in it: there is nothing. It has a new number, which
    /// no domain had before, and no [`shared_info`](MockDomain::shared_info). Registered areas, upcall vectors, timers,
    /// watchdogs, assists, ports and grants are gone. So are the parameters with a port in them, until somebody sets them
    /// again. Xen's system time began when the domain did.
    ///
    /// Returns the new number.
    pub fn migrate(&self, domain: &MockDomain) -> DomId {
        let (old, now) = (domain.id(), self.now());
        let new = {
            let mut state = self.state();
            let last = state.domains.keys().next_back().map_or(0, |id| id.0);
            let new = DomId(last + 1);
            if let Some(shared) = state.domains.remove(&old) {
                state.domains.insert(new, shared);
            }
            new
        };
        domain.set_id(new);
        domain.begin_anew(now);
        let mut hooks = core::mem::take(&mut self.state().suspension.hooks);
        hooks.iter_mut().for_each(|hook| hook(domain, old));
        // Those that were added meanwhile come after.
        let added = core::mem::replace(&mut self.state().suspension.hooks, hooks);
        self.state().suspension.hooks.extend(added);
        self.trace(|| format!("{old} goes on as {new}"));
        new
    }

    /// What `SHUTDOWN_suspend` returns to a domain.
    pub(super) fn suspend(&self, domain: &MockDomain) -> Resumed {
        domain.set_shutdown(ShutdownCode::SUSPEND);
        let taken = self.state().suspension.toolstack.take();
        let resumed = match taken {
            Some(mut toolstack) => {
                let resumed = toolstack(domain);
                self.state().suspension.toolstack.get_or_insert(toolstack);
                resumed
            }
            None => {
                self.migrate(domain);
                Resumed::InNewDomain
            }
        };
        let mut state = domain.state();
        (state.shutdown, state.shutdown_code) = (None, None);
        resumed
    }
}

impl MockDomain {
    /// Xen's system time on the machine that the domain is on: the time since it was migrated, or since the machine began.
    pub fn system_time(&self) -> Duration {
        self.xen().now().saturating_sub(self.state().epoch)
    }

    /// The machine's time at a system time of the domain's.
    pub(super) fn machine_time(&self, system_time: Duration) -> Duration {
        system_time.saturating_add(self.state().epoch)
    }

    /// Loses all that does not go with the domain.
    fn begin_anew(&self, now: Duration) {
        let mut state = self.state();
        let shared_info = state.shared_info.take();
        state.epoch = now;
        for vcpu in &mut state.vcpus {
            let Vcpu { initialised, up, .. } = *vcpu;
            *vcpu = Vcpu { initialised, context: vcpu.context.take(), up, ..Vcpu::default() };
        }
        for param in [HvmParam::CALLBACK_IRQ, HvmParam::STORE_EVTCHN, HvmParam::CONSOLE_EVTCHN] {
            state.params.remove(&param.0);
        }
        (state.watchdogs, state.assists) = ([None; 2], 0);
        drop(state);
        if let Some(gfn) = shared_info {
            self.take_page(gfn);
        }
    }

    /// Writes the time to `shared_info`, for a counter that counts the nanoseconds of virtual time.
    pub(super) fn tell_time(&self) {
        let epoch = self.state().epoch;
        let now = self.xen().now();
        let Some(shared) = self.shared_info() else { return };
        let nanoseconds = |time: Duration| time.as_nanos() as u64;
        for vcpu in 0..at::VCPUS {
            let base = vcpu * at::VCPU_INFO_SIZE + at::VCPU_TIME;
            write_u64(&shared, base + at::TIME_TSC_TIMESTAMP, nanoseconds(now));
            write_u64(&shared, base + at::TIME_SYSTEM_TIME, nanoseconds(now.saturating_sub(epoch)));
            // Half a nanosecond each, shifted left by one.
            shared.u32_at(base + at::TIME_TSC_TO_SYSTEM_MUL).store(1 << 31, Relaxed);
            shared.u8_at(base + at::TIME_SHIFT_AND_FLAGS).store(1, Relaxed);
            shared.u32_at(base + at::TIME_VERSION).fetch_add(2, Release);
        }
        let wall = WALL_CLOCK.saturating_add(epoch);
        shared.u32_at(at::WC_SEC).store(wall.as_secs() as u32, Relaxed);
        shared.u32_at(at::WC_SEC_HI).store((wall.as_secs() >> 32) as u32, Relaxed);
        shared.u32_at(at::WC_NSEC).store(wall.subsec_nanos(), Relaxed);
        shared.u32_at(at::WC_VERSION).fetch_add(2, Release);
    }
}

fn write_u64(shared: &SharedInfo<'_>, offset: usize, value: u64) {
    shared.u64_at(offset).store(value, Relaxed);
}
