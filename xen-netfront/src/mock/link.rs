//! A backend that is connected: queues, the control ring, events.

use core::sync::atomic::Ordering::{Acquire, SeqCst};
use std::collections::{BTreeSet, VecDeque};
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use xen_gnttab::GrantRef;
use xen_gnttab::mock::{MockMapping, map};
use xen_hypercall::event;
use xen_ring::{Back, Protocol};

use super::Backend;
use super::control::Control;
use super::serve::RSP_PROD;
use crate::Multicast;
use crate::abi::{Rx, RxRequest, RxResponse, Tx, TxResponse};

/// What the guest said it takes.
#[derive(Clone, Copy, Default)]
pub(super) struct Takes {
    pub(super) sg: bool,
    pub(super) gso_v4: bool,
    pub(super) gso_v6: bool,
    pub(super) csum_v4: bool,
    pub(super) csum_v6: bool,
}

/// What a backend has of a queue while it is connected.
pub(super) struct Queue {
    pub(super) tx: Back<Tx, MockMapping>,
    pub(super) rx: Back<Rx, MockMapping>,
    pub(super) tx_port: u32,
    pub(super) rx_port: u32,
    /// Pages to receive into that were taken from the ring and not used yet.
    pub(super) room: VecDeque<RxRequest>,
    /// Responses that are not written yet.
    pub(super) tx_answers: Vec<TxResponse>,
    /// With the request's id, if a guest that has followed so far must take the response for a whole frame.
    pub(super) rx_answers: Vec<(RxResponse, Option<u16>)>,
    /// Something went before by which the guest may take a response for something else.
    pub(super) rx_muddled: bool,
    /// The guest was shown what cannot be.
    pub(super) tx_lie: bool,
    pub(super) rx_lie: bool,
    /// Some of the former are late.
    pub(super) put_off: bool,
    /// How much too far the guest is told that they go.
    pub(super) tx_jump: Option<u32>,
    pub(super) rx_jump: Option<u32>,
    /// A ring is of no use.
    pub(super) dead: bool,
}

/// Takes a ring up where it is: what an earlier backend did not answer is looked at again.
fn attach<P: Protocol>(mut ring: MockMapping) -> Result<Back<P, MockMapping>, String> {
    let answered = ring.mem().load_u32(RSP_PROD, Acquire).map_err(|error| error.to_string())?;
    Back::attach_at(ring, answered).map_err(|error| error.to_string())
}

impl Backend {
    pub(super) fn offer(&mut self) {
        let super::Options { sg, gso_v4, gso_v6, csum_v4, csum_v6, rx_copy, split, queues, .. } =
            self.options;
        for (node, there) in [
            ("feature-sg", sg),
            ("feature-gso-tcpv4", gso_v4),
            ("feature-gso-tcpv6", gso_v6),
            ("feature-no-csum-offload", !csum_v4),
            ("feature-ipv6-csum-offload", csum_v6),
            ("feature-rx-copy", rx_copy),
            ("feature-rx-flip", false),
            ("feature-split-event-channels", split),
        ] {
            self.publish(node, if there { "1" } else { "0" });
        }
        let super::Options { multicast, control, headroom, .. } = self.options;
        for (node, there) in [
            ("feature-multicast-control", multicast != Multicast::Unfiltered),
            ("feature-dynamic-multicast-control", multicast == Multicast::Dynamic),
            ("feature-ctrl-ring", control.is_some()),
            ("feature-xdp-headroom", headroom),
        ] {
            self.publish(node, if there { "1" } else { "0" });
        }
        if queues > 0 {
            self.publish("multi-queue-max-queues", &queues.to_string());
        }
        self.word = self.given_word();
    }

    /// What the guest may rely on: what the nodes say, lies included.
    fn given_word(&self) -> super::Options {
        let read = |node: &str| self.store.read(&[&*self.back_path, "/", node].concat())?.parse::<u32>().ok();
        let says = |node: &str| read(node).unwrap_or(0) != 0;
        super::Options {
            sg: says("feature-sg"),
            gso_v4: says("feature-gso-tcpv4"),
            gso_v6: says("feature-gso-tcpv6"),
            csum_v4: !says("feature-no-csum-offload"),
            csum_v6: says("feature-ipv6-csum-offload"),
            rx_copy: says("feature-rx-copy"),
            split: says("feature-split-event-channels"),
            multicast: match (says("feature-dynamic-multicast-control"), says("feature-multicast-control")) {
                (true, _) => Multicast::Dynamic,
                (false, true) => Multicast::Static,
                _ => Multicast::Unfiltered,
            },
            control: says("feature-ctrl-ring").then(|| self.options.control.unwrap_or_default()),
            headroom: says("feature-xdp-headroom"),
            queues: read("multi-queue-max-queues").unwrap_or(0),
            ..self.options
        }
    }

    pub(super) fn connect(&mut self) -> Result<(), String> {
        self.guest_takes = Takes {
            sg: self.says("feature-sg"),
            gso_v4: self.says("feature-gso-tcpv4"),
            gso_v6: self.says("feature-gso-tcpv6"),
            csum_v4: !self.says("feature-no-csum-offload"),
            csum_v6: self.says("feature-ipv6-csum-offload"),
        };
        if !self.says("request-rx-copy") {
            return Err("no request-rx-copy".into());
        }
        if !self.says("feature-rx-notify") {
            return Err("no feature-rx-notify".into());
        }
        let count: u32 = self.front("multi-queue-num-queues").unwrap_or(1);
        if count == 0 || count > self.word.queues.max(1) {
            return Err(format!("{count} queues"));
        }
        for index in 0..count {
            let below = if count == 1 { String::new() } else { format!("queue-{index}/") };
            let queue = self.connect_queue(&below)?;
            self.queues.push(queue);
        }
        if count > 1 && self.front::<u32>("tx-ring-ref").is_some() {
            return Err("keys of a single queue beside those of several".into());
        }
        self.headroom = if self.word.headroom { self.front("xdp-headroom").unwrap_or(0) } else { 0 };
        self.filters = self.word.multicast != Multicast::Unfiltered && self.says("request-multicast-control");
        if let (Some(limits), Some(gref)) = (self.word.control, self.front("ctrl-ring-ref")) {
            let port = self.front("event-channel-ctrl").ok_or("no event-channel-ctrl")?;
            let page = map(&self.own, self.guest.id(), GrantRef(gref), true);
            let ring = Back::attach(page.map_err(|status| format!("ctrl-ring-ref: {status:?}"))?);
            let port = event::bind_interdomain(&self.own, self.guest.id(), port);
            let (ring, port) = (ring.map_err(|e| e.to_string())?, port.map_err(|e| e.to_string())?);
            self.control = Some(Control::new(ring, port, limits));
        }
        self.switch.set_up(self.port, true);
        Ok(())
    }

    pub(super) fn connect_queue(&mut self, below: &str) -> Result<Queue, String> {
        let guest = self.guest.id();
        let ring = |name: &str| {
            let gref = self.front(&format!("{below}{name}")).ok_or(format!("no {below}{name}"))?;
            map(&self.own, guest, GrantRef(gref), true).map_err(|status| format!("{name}: {status:?}"))
        };
        let tx = attach(ring("tx-ring-ref")?)?;
        let rx = attach(ring("rx-ring-ref")?)?;
        let bind = |name: &str| {
            let port = self.front(&format!("{below}{name}")).ok_or(format!("no {below}{name}"))?;
            event::bind_interdomain(&self.own, guest, port).map_err(|errno| errno.to_string())
        };
        let (tx_port, rx_port) = if self.front::<u32>(&format!("{below}event-channel-tx")).is_some() {
            if !self.word.split {
                return Err("split event channels".into());
            }
            (bind("event-channel-tx")?, bind("event-channel-rx")?)
        } else {
            let port = bind("event-channel")?;
            (port, port)
        };
        Ok(Queue {
            tx,
            rx,
            tx_port,
            rx_port,
            room: VecDeque::new(),
            tx_answers: Vec::new(),
            rx_answers: Vec::new(),
            rx_muddled: false,
            tx_lie: false,
            rx_lie: false,
            put_off: false,
            tx_jump: None,
            rx_jump: None,
            dead: false,
        })
    }

    pub(super) fn disconnect(&mut self) {
        self.switch.set_up(self.port, false);
        self.backlog.clear();
        self.late_events.clear();
        self.wanted.clear();
        if let Some(control) = self.control.take() {
            let _ = event::close(&self.own, control.port);
        }
        for queue in core::mem::take(&mut self.queues) {
            // The guest may have closed its ends; ours are there in any case.
            for port in BTreeSet::from([queue.tx_port, queue.rx_port]) {
                let _ = event::close(&self.own, port);
            }
            if self.holds {
                self.kept.extend([queue.tx.into_inner(), queue.rx.into_inner()]);
            }
        }
    }

    /// Whether an event came to a port since the last look.
    pub(super) fn notified(&mut self, port: u32) -> bool {
        let Some(shared) = self.own.shared_info() else { return false };
        let bit = 1 << (port % 64);
        let word = shared.evtchn_pending(port as usize / 64);
        let came = word.is_some_and(|word| word.fetch_and(!bit, SeqCst) & bit != 0);
        self.stats.events += u64::from(came);
        came
    }

    pub(super) fn notify(&mut self, port: u32) {
        if self.roll(|faults| faults.lost_event) {
            return;
        }
        if self.roll(|faults| faults.late_event) {
            return self.late_events.push(port);
        }
        self.send_event(port);
    }

    pub(super) fn send_event(&mut self, port: u32) {
        // Fails when the guest has closed its end, who then does not care.
        let _ = event::send(&self.own, port);
        self.stats.notifications += 1;
    }
}
