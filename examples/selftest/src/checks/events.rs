//! Event channels, with the ABI in use: timers, channels of a domain with itself, masks, priorities, late ends.

use alloc::format;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use core::task::{Context, Waker};
use core::time::Duration;

use check_report::{Failure, Report, ensure};
use xen_evtchn::{Abi, Channel, Error, Port, Priority, Progress, Status, Virq};
use xen_hypercall::{DomId, Errno, VcpuId, Wait, event, sched, vcpu};
use xen_rt::Kernel;

use super::calls::NOBODY;
use super::{ARM, Domain, Events, PATIENCE, poll_sleeps, sleep};

const VCPU: VcpuId = VcpuId(0);

type Own<'e> = Channel<'e, &'static Kernel>;

/// Whether Xen gave this reason.
pub(super) fn is(wanted: Errno) -> impl Fn(&Error) -> bool {
    move |error| matches!(error, Error::Hypercall { errno, .. } if *errno == wanted)
}

/// Whether an event has come by now.
fn came(events: &Events, channel: &Own<'_>) -> bool {
    events.dispatch(VCPU);
    channel.take()
}

/// Both ends of a channel of the domain with itself, their first events taken.
pub(super) fn pair(events: &Events) -> Result<(Own<'_>, Own<'_>), Failure> {
    let near = events.alloc_unbound(DomId::SELF)?;
    let far = events.bind_interdomain(DomId::SELF, near.port())?;
    for end in [&near, &far] {
        end.set_late_eoi(false);
    }
    events.dispatch(VCPU);
    near.take();
    far.take();
    Ok((near, far))
}

/// Without the channel of the timer, which is the runtime's then, what needs that is left out.
pub(super) fn run(domain: &Domain, events: &Events, timer: Option<&Own<'_>>, report: &mut Report) {
    let abi = events.abi_in_use();
    let prefix = if abi == Abi::Fifo { "evtchn-fifo" } else { "evtchn-2-level" };
    let name = |what: &str| format!("{prefix}/{what}");
    timers(domain, events, timer, report, &name);
    report.check(&name("ipi"), || {
        let channel = events.bind_ipi(VCPU)?;
        ensure!(channel.status()? == Status::Ipi, "{:?}", channel.status());
        ensure!(!came(events, &channel), "an event from nowhere");
        channel.notify()?;
        channel.notify()?;
        ensure!(came(events, &channel) && !came(events, &channel), "two events before the look are one");
        let moved = channel.bind_vcpu(VCPU);
        ensure!(moved.is_err_and(|error| is(Errno::EINVAL)(&error)), "an IPI moved: {moved:?}");
        ensure!(channel.stats().notifications == 2 && channel.stats().events == 1, "{:?}", channel.stats());
        Ok(())
    });
    report.check(&name("interdomain"), || {
        let near = events.alloc_unbound(DomId::SELF)?;
        let Status::Unbound { remote: own } = near.status()? else {
            return Err(Failure(format!("{:?}", near.status())));
        };
        let far = events.bind_interdomain(DomId::SELF, near.port())?;
        ensure!(came(events, &far), "no first event at the end that bound");
        for end in [&near, &far] {
            end.set_late_eoi(false);
        }
        near.take();
        let status = Status::Interdomain { remote: own, port: near.port() };
        ensure!(far.status()? == status, "{:?} in place of {status:?}", far.status());
        near.notify()?;
        ensure!(came(events, &far) && !near.take(), "not from near to far");
        far.notify()?;
        ensure!(came(events, &near) && !far.take(), "not from far to near");
        near.bind_vcpu(VCPU)?;
        let nobody = near.bind_vcpu(VcpuId(77));
        ensure!(
            nobody == Err(Error::VcpuNotAdded(VcpuId(77))),
            "bound to a vCPU that was not added: {nobody:?}"
        );
        let port = far.port();
        drop(far);
        ensure!(matches!(near.status()?, Status::Unbound { .. }), "{:?} after the other end", near.status());
        let closed = event::status(domain.kernel, port.0)?;
        ensure!(closed.status == 0, "the other end is there still: {closed:?}");
        near.notify()?;
        Ok(())
    });
    let far = |of, port| events.bind_interdomain(of, Port(port)).map(drop);
    report.fails_with(&name("bind-closed-port"), far(DomId::SELF, 900), is(Errno::EINVAL));
    report.fails_with(&name("bind-nobody"), far(NOBODY, 1), is(Errno::ESRCH));
    report.check(&name("mask"), || {
        let channel = events.bind_ipi(VCPU)?;
        channel.mask();
        channel.notify()?;
        ensure!(channel.is_masked() && !came(events, &channel), "it came in spite of the mask");
        // Pending and masked: Xen has to raise it again.
        channel.unmask();
        ensure!(!channel.is_masked() && came(events, &channel), "it was lost");
        Ok(())
    });
    report.check(&name("raw-unmask"), || {
        let channel = events.bind_ipi(VCPU)?;
        channel.mask();
        channel.notify()?;
        event::unmask(domain.kernel, channel.port().0)?;
        ensure!(came(events, &channel), "it was lost");
        channel.unmask();
        Ok(())
    });
    report.check(&name("sched-poll"), || {
        let (near, far) = pair(events)?;
        far.mask();
        if !ARM {
            poll_sleeps(domain.kernel, &[far.port().0])?;
        }
        near.notify()?;
        let until = domain.kernel.now() + PATIENCE;
        // A guest on Arm does not know the time of which the deadline is.
        let deadline = (!ARM).then(|| domain.kernel.system_time(until));
        sched::poll(domain.kernel, &[far.port().0], deadline)?;
        ensure!(domain.kernel.now() < until, "the event did not end the sleep");
        far.unmask();
        ensure!(came(events, &far), "the event is gone");
        Ok(())
    });
    late_ends(events, report, &name);
    priorities(events, report, &name, abi);
    report.check(&name("many-ports"), || {
        // More than a page of the FIFO ABI's words. A domain of xl's may have 1023 ports.
        let (mut channels, mut refused) = (Vec::new(), None);
        for _ in 0..1500 {
            match events.bind_ipi(VCPU) {
                Ok(channel) => channels.push(channel),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        let enough = if domain.first { 1500 } else { 1000 };
        ensure!(channels.len() >= enough, "{} ports, then {refused:?}", channels.len());
        ensure!(refused.as_ref().is_none_or(is(Errno::ENOSPC)), "{refused:?}");
        for channel in &channels {
            channel.notify()?;
        }
        events.dispatch(VCPU);
        let missing = channels.iter().filter(|channel| !channel.take()).count();
        ensure!(missing == 0, "{missing} of {} events are missing", channels.len());
        Ok(())
    });
    report.check(&name("no-strays"), || {
        let stats = events.stats();
        ensure!(stats.stray == 0 && stats.events > 0 && stats.upcalls > 0, "{stats:?}");
        Ok(())
    });
}

fn timers(
    domain: &Domain,
    events: &Events,
    timer: Option<&Own<'_>>,
    report: &mut Report,
    name: &impl Fn(&str) -> alloc::string::String,
) {
    let xen = domain.kernel;
    report.fails_with(&name("virq-twice"), events.bind_virq(Virq::TIMER, VCPU), is(Errno::EEXIST));
    report.fails_with(&name("virq-unknown"), events.bind_virq(Virq(99), VCPU), is(Errno::EINVAL));
    report.check(&name("sleep-after-an-event"), || {
        // Nobody has looked at the event when the sleep begins: if that lost it, this would never end.
        let channel = events.bind_ipi(VCPU)?;
        channel.notify()?;
        xen.wait(None, &|| false);
        // Nor does another sleep begin before somebody looks.
        xen.wait(None, &|| false);
        ensure!(came(events, &channel), "something else ended the sleep");
        Ok(())
    });
    report.check(&name("sleep-until"), || {
        // The timer is set in the middle of and after the way to sleep, and while it is telling of its end.
        for micros in 0..300 {
            let at = xen.now() + Duration::from_micros(micros);
            while xen.now() < at {
                xen.wait(Some(at), &|| false);
            }
        }
        Ok(())
    });
    if let Some(timer) = timer {
        timers_of_xen(domain, events, timer, report, name);
    }
}

/// Xen's timers, and the channel that tells of their end.
fn timers_of_xen(
    domain: &Domain,
    events: &Events,
    timer: &Own<'_>,
    report: &mut Report,
    name: &impl Fn(&str) -> alloc::string::String,
) {
    let xen = domain.kernel;
    let fired = || came(events, timer);
    report.check(&name("status-virq"), || {
        ensure!(timer.status()? == Status::Virq(Virq::TIMER), "{:?}", timer.status());
        Ok(())
    });
    if ARM {
        return;
    }
    report.check(&name("set-timer-and-block"), || {
        // The last sleep may have ended before its timer.
        sleep(events, Duration::from_millis(5));
        fired();
        // Far enough for a machine with much else to do: with interrupts off, an event before `block` would not end it.
        let at = xen.now() + Duration::from_secs(2);
        vcpu::set_timer(xen, Some(at))?;
        let mut rang = false;
        if domain.first {
            // Only the first event since the last look ends the sleep. Here is none but the timer's.
            sched::block(xen)?;
            rang = fired();
        }
        // A console's daemon sends events, too, so this one sleeps as a kernel does.
        while !rang {
            xen.wait(None, &|| false);
            rang = fired();
        }
        let early = at.saturating_sub(xen.now());
        ensure!(early.is_zero(), "early by {early:?}");
        Ok(())
    });
    report.check(&name("set-timer-and-take-back"), || {
        taken_back(events, &fired, |at| {
            vcpu::set_timer(xen, Some(at))?;
            Ok(vcpu::set_timer(xen, None)?)
        })
    });
    report.check(&name("singleshot"), || {
        let at = xen.now() + Duration::from_millis(3);
        vcpu::set_singleshot_timer(xen, VCPU, at)?;
        loop {
            let seen = events.seq();
            if timer.take() {
                break;
            }
            events.wait_since(seen, None);
        }
        let early = at.saturating_sub(xen.now());
        ensure!(early.is_zero(), "early by {early:?}");
        taken_back(events, &fired, |at| {
            vcpu::set_singleshot_timer(xen, VCPU, at)?;
            Ok(vcpu::stop_singleshot_timer(xen, VCPU)?)
        })
    });
    report.check(&name("sleep-around-an-event"), || {
        // The timer's event comes before, in the middle of and after the way to sleep.
        for micros in 0..300 {
            fired();
            if vcpu::set_singleshot_timer(xen, VCPU, xen.now() + Duration::from_micros(micros)).is_err() {
                // It is late by now.
                continue;
            }
            loop {
                xen.wait(None, &|| false);
                if fired() {
                    break;
                }
            }
        }
        Ok(())
    });
    report.check(&name("periodic"), || {
        vcpu::set_periodic_timer(xen, VCPU, Duration::from_millis(2))?;
        let (mut count, end) = (0, xen.now() + PATIENCE);
        // A vCPU that sleeps has no periodic timer.
        while count < 5 && xen.now() < end {
            count += u32::from(fired());
        }
        vcpu::stop_periodic_timer(xen, VCPU)?;
        fired();
        sleep(events, Duration::from_millis(6));
        ensure!(count == 5 && !fired(), "fired {count} times, or after it was stopped");
        Ok(())
    });
    // The kernel remembers when its timer fires, and does not know that it was set anew behind its back.
    xen.wait(Some(xen.now() + Duration::from_millis(1)), &|| false);
}

/// A timer that was set and taken back before its time does not fire.
fn taken_back(
    events: &Events,
    fired: &dyn Fn() -> bool,
    set_and_take_back: impl Fn(Duration) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let xen = *events.platform();
    for _ in 0..100 {
        fired();
        let at = xen.now() + Duration::from_millis(100);
        set_and_take_back(at)?;
        // A machine with much else to do may have come to that too late.
        if xen.now() < at {
            sleep(events, at + Duration::from_millis(3) - xen.now().min(at));
            ensure!(!fired(), "it fired");
            return Ok(());
        }
    }
    Err(Failure("never in time".into()))
}

fn late_ends(events: &Events, report: &mut Report, name: &impl Fn(&str) -> alloc::string::String) {
    report.check(&name("late-end"), || {
        let (near, far) = pair(events)?;
        far.set_late_eoi(true);
        near.notify()?;
        ensure!(came(events, &far), "no event");
        near.notify()?;
        ensure!(far.is_masked() && !came(events, &far), "an event before the last one's end");
        far.done(Progress::Work);
        ensure!(came(events, &far), "what came meanwhile was lost");
        far.done(Progress::Work);
        Ok(())
    });
    report.check(&name("throttled"), || {
        let (near, far) = pair(events)?;
        far.set_late_eoi(true);
        for _ in 0..2 {
            near.notify()?;
            ensure!(came(events, &far), "no event");
            far.done(Progress::Spurious);
        }
        ensure!(events.stats().throttled_now == 1 && far.is_masked(), "not throttled");
        near.notify()?;
        ensure!(!came(events, &far), "an event in spite of that");
        let end = events.platform().now() + PATIENCE;
        while !came(events, &far) && events.platform().now() < end {
            events.unmask_due();
        }
        ensure!(events.stats().throttled_now == 0 && far.stats().events == 4, "{:?}", far.stats());
        Ok(())
    });
}

/// Notes in which order wakers were called.
struct Turn {
    turns: Arc<AtomicU32>,
    mine: AtomicU32,
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.mine.store(self.turns.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

fn priorities(events: &Events, report: &mut Report, name: &impl Fn(&str) -> alloc::string::String, abi: Abi) {
    if abi != Abi::Fifo {
        let set = events.bind_ipi(VCPU).and_then(|channel| channel.set_priority(Priority::HIGHEST));
        report.fails_with(&name("priority"), set, is(Errno::ENOSYS));
        return;
    }
    report.check(&name("priority"), || {
        let turns = Arc::new(AtomicU32::new(0));
        let mut all = Vec::new();
        for priority in [Priority::LOWEST, Priority::DEFAULT, Priority::HIGHEST, Priority(3)] {
            let channel = events.bind_ipi(VCPU)?;
            channel.set_priority(priority)?;
            let turn = Arc::new(Turn { turns: Arc::clone(&turns), mine: AtomicU32::new(0) });
            ensure!(
                channel.poll_event(&mut Context::from_waker(&Waker::from(Arc::clone(&turn)))).is_pending(),
                "an event"
            );
            all.push((channel, turn));
        }
        for (channel, _) in &all {
            channel.notify()?;
        }
        events.dispatch(VCPU);
        let order: Vec<u32> = all.iter().map(|(_, turn)| turn.mine.load(Ordering::Relaxed)).collect();
        ensure!(order == [4, 3, 1, 2], "turns {order:?}");
        Ok(())
    });
    report.check(&name("priority-out-of-range"), || {
        let channel = events.bind_ipi(VCPU)?;
        let set = channel.set_priority(Priority(16));
        ensure!(set.is_err_and(|error| is(Errno::EINVAL)(&error)), "{set:?}");
        Ok(())
    });
    report.check(&name("first-come-first-served"), || {
        let turns = Arc::new(AtomicU32::new(0));
        let mut all = Vec::new();
        for _ in 0..20 {
            let channel = events.bind_ipi(VCPU)?;
            let turn = Arc::new(Turn { turns: Arc::clone(&turns), mine: AtomicU32::new(0) });
            let _ = channel.poll_event(&mut Context::from_waker(&Waker::from(Arc::clone(&turn))));
            all.push((channel, turn));
        }
        // Not in the order of the ports.
        for index in 0..20 {
            if let Some((channel, _)) = all.get(index * 7 % 20) {
                channel.notify()?;
            }
        }
        events.dispatch(VCPU);
        let turn = |index: usize| all.get(index * 7 % 20).map(|(_, turn)| turn.mine.load(Ordering::Relaxed));
        ensure!((0..20).all(|index| turn(index) == Some(index as u32 + 1)), "another order");
        Ok(())
    });
}
