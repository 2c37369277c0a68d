//! Xen's side of the FIFO ABI, in the pages that the domain gave it.
#![allow(unsafe_code, reason = "reads and writes pages of the domain, as Xen does")]

use core::mem::offset_of;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;
use std::collections::BTreeMap;
use std::format;
use std::vec::Vec;

use xen_hypercall::mock::MockDomain;
use xen_hypercall::{Errno, Gfn, PAGE_SIZE, VcpuId};

use super::signal::Interrupts;
use crate::abi::*;
use crate::fifo::{BUSY, LINK, LINKED, MASKED, PENDING};

const WORDS: u32 = (PAGE_SIZE / size_of::<u32>()) as u32;

/// A queue: a vCPU's, of a priority.
type Queue = (VcpuId, u32);

/// What Xen keeps for a domain with the FIFO ABI.
#[derive(Default)]
pub(super) struct Fifo {
    /// Each vCPU's control block.
    control: BTreeMap<VcpuId, (Gfn, u32)>,
    array: Vec<Gfn>,
    /// The last port of each queue that has or had one.
    tails: BTreeMap<Queue, u32>,
    /// The queue that each port was put in last.
    last: BTreeMap<u32, Queue>,
}

impl Fifo {
    pub(super) fn add_control(
        &mut self,
        domain: &MockDomain,
        gfn: Gfn,
        offset: u32,
        vcpu: VcpuId,
    ) -> Result<(), Errno> {
        if self.control.contains_key(&vcpu) || domain.page_at(gfn).is_none() {
            return Err(Errno::EINVAL);
        }
        self.control.insert(vcpu, (gfn, offset));
        Ok(())
    }

    /// Adds a page of words; returns its ports.
    pub(super) fn add_page(&mut self, domain: &MockDomain, gfn: Gfn) -> Result<core::ops::Range<u32>, Errno> {
        let first = self.array.len() as u32 * WORDS;
        if first >= EVTCHN_FIFO_NR_CHANNELS {
            return Err(Errno::ENOSPC);
        }
        domain.page_at(gfn).ok_or(Errno::EINVAL)?;
        self.array.push(gfn);
        Ok(first..first + WORDS)
    }

    /// Whether the guest gave memory for a port's word.
    pub(super) fn has_word(&self, port: u32) -> bool {
        self.array.len() as u32 * WORDS > port
    }

    fn word<'d>(&self, domain: &'d MockDomain, port: u32) -> Option<&'d AtomicU32> {
        let gfn = *self.array.get((port / WORDS) as usize)?;
        at(domain, gfn, (port % WORDS) as usize * size_of::<u32>())
    }

    fn control<'d>(&self, domain: &'d MockDomain, vcpu: VcpuId, field: usize) -> Option<&'d AtomicU32> {
        let (gfn, offset) = *self.control.get(&vcpu)?;
        at(domain, gfn, offset as usize + field)
    }

    /// In a queue: Xen does not give the number to a new owner.
    pub(super) fn is_busy(&self, domain: &MockDomain, port: u32) -> bool {
        self.word(domain, port).is_some_and(|word| word.load(SeqCst) & LINKED != 0)
    }

    pub(super) fn clear_pending(&self, domain: &MockDomain, port: u32) {
        if let Some(word) = self.word(domain, port) {
            word.fetch_and(!PENDING, SeqCst);
        }
    }

    pub(super) fn unmask(
        &mut self,
        domain: &MockDomain,
        port: u32,
        queue: Queue,
        interrupts: &mut Interrupts,
    ) {
        let Some(word) = self.word(domain, port) else { return };
        if word.fetch_and(!MASKED, SeqCst) & PENDING != 0 {
            self.set_pending(domain, port, queue, interrupts);
        }
    }

    pub(super) fn set_pending(
        &mut self,
        domain: &MockDomain,
        port: u32,
        queue: Queue,
        interrupts: &mut Interrupts,
    ) {
        let Some(word) = self.word(domain, port) else { return };
        word.fetch_or(PENDING, SeqCst);
        if word.load(SeqCst) & (MASKED | LINKED) != 0 {
            return;
        }
        let (vcpu, priority) = queue;
        let Some(ready) = self.control(domain, vcpu, offset_of!(EvtchnFifoControlBlock, ready)) else {
            domain.xen().trace(|| format!("{} has no queues for {vcpu:?}: {port} is lost", domain.id()));
            return;
        };
        if word.fetch_or(LINKED, SeqCst) & LINKED != 0 {
            return;
        }
        // The last port of its former queue: that queue is empty now, and nothing may be linked to this one there.
        let former = self.last.insert(port, queue);
        if let Some(former) = former.filter(|former| self.tails.get(former) == Some(&port)) {
            self.tails.remove(&former);
        }
        let linked = self.tails.get(&queue).is_some_and(|tail| self.link(domain, *tail, port));
        self.tails.insert(queue, port);
        if linked {
            return;
        }
        let head = offset_of!(EvtchnFifoControlBlock, head) + priority as usize * size_of::<u32>();
        if let Some(head) = self.control(domain, vcpu, head) {
            head.store(port, SeqCst);
        }
        if ready.fetch_or(1 << priority, SeqCst) & 1 << priority == 0 {
            interrupts.upcall(domain, vcpu);
        }
    }

    /// Links `next` to a port that is still in the queue.
    fn link(&self, domain: &MockDomain, port: u32, next: u32) -> bool {
        let Some(word) = self.word(domain, port) else { return false };
        let link = |old: u32| (old & LINKED != 0).then_some(old & !(BUSY | LINK) | next);
        word.fetch_update(SeqCst, SeqCst, link).is_ok()
    }
}

/// A word of one of the domain's pages.
fn at(domain: &MockDomain, gfn: Gfn, offset: usize) -> Option<&AtomicU32> {
    assert!(offset % 4 == 0 && offset < PAGE_SIZE);
    let page = domain.page_at(gfn)?;
    // SAFETY: the offset is in the page, and a multiple of 4 of an aligned page; the guest gave the page for this and reaches
    // it by atomics. It lives as long as the machine, of which `domain` is a handle.
    Some(unsafe { AtomicU32::from_ptr(page.as_ptr().cast::<u8>().add(offset).cast()) })
}
