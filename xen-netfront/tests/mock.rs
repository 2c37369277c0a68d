//! The mock itself, from a frontend that breaks the rules: what Linux' netback does not take is complained about and
//! answered with an error, or ends the device where it does there.
#![cfg(feature = "mock")]

mod common;

use common::{GUEST, HOST, Machine, bytes, frame, tcp};
use xen_evtchn::Channel;
use xen_gnttab::{Access, GrantedPage};
use xen_hypercall::DomId;
use xen_hypercall::mock::{Chance, Dice, MockDomain};
use xen_netfront::abi::*;
use xen_netfront::mock::{Faults, MockNetback, Options};
use xen_netfront::packet::{self, Packet};
use xen_netfront::{Checksum, Config, Error, FramePage, Gso, GsoKind, TxMeta};
use xen_ring::Front;
use xen_xenstore::Xenstore;
use xen_xenstore::xenbus::{Frontend, XenbusState};
use zerocopy::transmute;

/// A frontend by hand: the rings, one page of data, and no rules.
struct Raw<'m> {
    machine: &'m Machine,
    back: MockNetback,
    tx: Front<Tx, GrantedPage<'m, MockDomain>>,
    channel: Channel<'m, MockDomain>,
    page: GrantedPage<'m, MockDomain>,
    _rx: Front<Rx, GrantedPage<'m, MockDomain>>,
}

impl<'m> Raw<'m> {
    fn connect(machine: &'m Machine, options: Options, nodes: &[(&str, &str)]) -> Self {
        let back = machine.vif(options);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let share = |access| machine.grants.share(DomId(0), access).unwrap();
        let mut tx = Front::<Tx, _>::init(share(Access::ReadWrite)).unwrap();
        let mut rx = Front::<Rx, _>::init(share(Access::ReadWrite)).unwrap();
        let channel = machine.events.alloc_unbound(DomId(0)).unwrap();
        let device = Frontend::open(&mut xs, "vif", 0, machine.soon()).unwrap();
        let device = device.wait_for_backend(&mut xs, machine.soon()).unwrap();
        let refs = [tx.backing().gref().0, rx.backing().gref().0, channel.port().0];
        let _ = device.publish(&mut xs, XenbusState::CONNECTED, |transaction, path| {
            for (node, value) in ["tx-ring-ref", "rx-ring-ref", "event-channel"].iter().zip(refs) {
                transaction.write_display(&path.join(node)?, value)?;
            }
            for (node, value) in [("request-rx-copy", "1"), ("feature-rx-notify", "1")].iter().chain(nodes) {
                match *value {
                    "" => transaction.remove(&path.join(node)?)?,
                    value => transaction.write_display(&path.join(node)?, value)?,
                }
            }
            Ok(())
        });
        machine.run();
        let page = share(Access::ReadOnly);
        Self { machine, back, tx, channel, page, _rx: rx }
    }

    fn request(&self, flags: TxFlags, offset: u16, size: u16, id: u16) -> TxRequest {
        TxRequest { gref: self.page.gref().0, offset, flags: flags.bits(), id, size }
    }

    /// Sends slots and answers the statuses of the responses.
    fn send(&mut self, slots: &[TxRequest]) -> Vec<i16> {
        for slot in slots {
            self.tx.push(slot).unwrap();
        }
        let _ = self.tx.publish().unwrap();
        self.channel.notify().unwrap();
        self.machine.run();
        std::iter::from_fn(|| self.tx.pop().unwrap()).map(|response| response.status).collect()
    }

    fn complaint(&self) -> String {
        self.back.complaints().last().cloned().unwrap_or_default()
    }
}

fn none() -> TxFlags {
    TxFlags::empty()
}

#[test]
fn frames_that_linux_drops_are_errors_and_no_more() {
    let machine = Machine::new();
    let mut raw = Raw::connect(&machine, Options::default(), &[]);
    let good = frame(HOST, GUEST, 60, 0);
    raw.page.write_bytes(0, &good).unwrap();
    let more = TxFlags::MORE_DATA;
    let mut nineteen: Vec<TxRequest> = (0..19).map(|id| raw.request(more, 0, 60, id)).collect();
    nineteen[0].size = 19 * 60;
    nineteen[18].flags = 0;
    let cases: Vec<(Vec<TxRequest>, &str)> = vec![
        (vec![raw.request(none(), 0, 0, 1)], "a frame of 0 bytes"),
        (vec![raw.request(none(), 0, 13, 1)], "a frame of 13 bytes"),
        (vec![raw.request(more, 0, 60, 1), raw.request(none(), 0, 0, 2)], "a slot without a byte"),
        (vec![raw.request(more, 0, 60, 1), raw.request(none(), 0, 60, 2)], "a slot without a byte"),
        (
            vec![raw.request(more, 0, 60, 1), raw.request(none(), 0, 61, 2)],
            "slots that are larger than the frame",
        ),
        (nineteen, "a frame of 19 slots"),
        (vec![TxRequest { gref: 4000, ..raw.request(none(), 0, 60, 1) }], "grant 4000"),
        (vec![raw.request(TxFlags::CSUM_BLANK, 0, 60, 1)], "neither TCP nor UDP"),
    ];
    for (slots, complaint) in cases {
        assert_eq!(raw.send(&slots), vec![RSP_ERROR; slots.len()], "{complaint}");
        assert!(raw.complaint().contains(complaint), "{:?} is not {complaint:?}", raw.complaint());
    }
    assert_eq!(machine.switch.receive(), None);
    // It takes the next one.
    let slot = raw.request(none(), 0, 60, 9);
    assert_eq!(raw.send(&[slot]), [RSP_OKAY]);
    assert_eq!(machine.switch.receive().unwrap().bytes, good);
}

#[test]
fn checksums_and_cutting_have_rules() {
    let machine = Machine::new();
    let mut raw = Raw::connect(&machine, Options { gso_v6: false, ..Options::default() }, &[]);
    let mut partial = tcp(false, true, 1, &bytes(2000));
    let whole = partial.clone();
    let found = Packet::parse(&partial).unwrap();
    packet::set_partial(&mut partial, &found);
    let (blank, extra) = (TxFlags::CSUM_BLANK, TxFlags::EXTRA_INFO);
    let len = partial.len() as u16;
    let gso =
        |size, kind| -> TxRequest { transmute!(TxExtra { info: ExtraInfo::gso(size, kind), pad: [0; 4] }) };
    for (content, flags, info, complaint) in [
        (&whole, blank, None, "not the pseudo header's sum"),
        (&partial, extra, Some(gso(1000, 1)), "GSO without a blank checksum"),
        (&partial, blank | extra, Some(gso(1000, 2)), "GSO that was not offered"),
    ] {
        raw.page.write_bytes(0, content).unwrap();
        let mut slots = vec![raw.request(flags, 0, len, 3)];
        slots.extend(info);
        let answers = raw.send(&slots);
        assert_eq!(answers[0], RSP_ERROR);
        assert!(raw.complaint().contains(complaint), "{:?} is not {complaint:?}", raw.complaint());
    }
    // Headers in two slots.
    raw.page.write_bytes(0, &partial).unwrap();
    let (first, second) =
        (raw.request(blank | TxFlags::MORE_DATA, 0, len, 1), raw.request(none(), 50, len - 50, 2));
    assert_eq!(raw.send(&[first, second]), [RSP_ERROR; 2]);
    assert!(raw.complaint().contains("headers in more than the first slot"));
    // As it should be; the slot of the extra information is answered by nothing.
    let slot = raw.request(blank | extra, 0, len, 4);
    assert_eq!(raw.send(&[slot, gso(1000, 1)]), [RSP_OKAY, RSP_NULL]);
    assert_eq!(machine.switch.receive().unwrap().to_wire().unwrap().len(), 2);
}

#[test]
fn what_linux_takes_for_an_attack_ends_the_device() {
    let gso =
        |size, kind| -> TxRequest { transmute!(TxExtra { info: ExtraInfo::gso(size, kind), pad: [0; 4] }) };
    let info = |kind| -> TxRequest {
        transmute!(TxExtra { info: ExtraInfo { kind, flags: 0, data: [0; 6] }, pad: [0; 4] })
    };
    let extra = TxFlags::EXTRA_INFO;
    type Slots = fn(&Raw<'_>) -> Vec<TxRequest>;
    let cases: [(Slots, &str); 4] = [
        (|raw| vec![raw.request(none(), 4090, 60, 1)], "60 bytes at 4090 cross a page"),
        (|raw| vec![raw.request(TxFlags::MORE_DATA, 0, 60, 1)], "not all there"),
        (|raw| vec![raw.request(TxFlags::EXTRA_INFO, 0, 60, 1)], "not all there"),
        (|raw| (0..20).map(|id| raw.request(TxFlags::MORE_DATA, 0, 60, id)).collect(), "20 slots"),
    ];
    for (slots, complaint) in cases {
        let machine = Machine::new();
        let mut raw = Raw::connect(&machine, Options::default(), &[]);
        let slots = slots(&raw);
        assert_eq!(raw.send(&slots), [], "nothing is answered any more");
        assert!(raw.complaint().contains(complaint), "{:?} is not {complaint:?}", raw.complaint());
        assert_eq!(raw.send(&[raw.request(none(), 0, 60, 9)]), []);
    }
    for (slot, complaint) in
        [(info(0), "kind 0"), (info(5), "kind 5"), (gso(0, 1), "no size"), (gso(1000, 0), "GSO of kind 0")]
    {
        let machine = Machine::new();
        let mut raw = Raw::connect(&machine, Options::default(), &[]);
        let first = raw.request(extra, 0, 60, 1);
        assert_eq!(raw.send(&[first, slot]), []);
        assert!(raw.complaint().contains(complaint), "{:?} is not {complaint:?}", raw.complaint());
    }
}

#[test]
fn a_frontend_that_does_not_say_what_it_needs_is_not_connected() {
    for (nodes, complaint) in [
        ([("request-rx-copy", "0")], "no request-rx-copy"),
        ([("feature-rx-notify", "0")], "no feature-rx-notify"),
        ([("tx-ring-ref", "")], "no tx-ring-ref"),
        ([("rx-ring-ref", "")], "no rx-ring-ref"),
        ([("event-channel", "")], "no event-channel"),
        ([("tx-ring-ref", "4000")], "tx-ring-ref: "),
        ([("multi-queue-num-queues", "0")], "0 queues"),
        ([("multi-queue-num-queues", "5")], "5 queues"),
        ([("multi-queue-num-queues", "2")], "no queue-0/tx-ring-ref"),
    ] {
        let machine = Machine::new();
        let raw = Raw::connect(&machine, Options::default(), &nodes);
        assert!(raw.complaint().contains(complaint), "{:?} is not {complaint:?}", raw.complaint());
        assert_eq!(xen_gnttab::mock::mappings_of(&machine.xen, machine.guest.id()), 0);
        let state = machine.store.read("/local/domain/0/backend/vif/1/0/state");
        assert_eq!(state.as_deref(), Some("6"));
    }
}

#[test]
fn a_backend_that_forgets_no_event_does_not_look_without_one() {
    let machine = Machine::new();
    let mut raw = Raw::connect(&machine, Options::default(), &[]);
    raw.page.write_bytes(0, &frame(HOST, GUEST, 60, 0)).unwrap();
    let slot = raw.request(none(), 0, 60, 1);
    raw.tx.push(&slot).unwrap();
    assert!(raw.tx.publish().unwrap());
    machine.run();
    assert_eq!(machine.switch.receive(), None);
    raw.channel.notify().unwrap();
    machine.run();
    assert!(machine.switch.receive().is_some());
}

#[test]
fn a_seed_decides_a_whole_run() {
    let run = |seed| {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut front = machine.connect(&mut xs).unwrap();
        let mut faults = Faults::default();
        (faults.fail, faults.late, faults.lost_event) =
            (Chance::percent(20), Chance::percent(40), Chance::percent(9));
        (faults.rx_error, faults.spurious_event) = (Chance::percent(30), Chance::percent(30));
        back.set_faults(Dice::new(seed), faults);
        for round in 0..100 {
            let _ = front.transmit(&frame(HOST, GUEST, 60, round));
            machine.switch.send(frame(GUEST, HOST, 60, round));
            front.publish().unwrap();
            machine.run();
            while front.receive(&mut [0; 60]).unwrap().is_some() {}
            let _ = front.arm();
        }
        assert!(back.faults_hit() > 50 && back.lies_hit() == 0);
        (front.stats(), back.stats(), machine.xen.trace_text())
    };
    assert!(run(1) == run(1));
    assert!(run(1) != run(2));
}

#[test]
fn answers_that_are_always_late_come_all_the_same() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    let mut faults = Faults::default();
    faults.late = Chance::ALWAYS;
    back.set_faults(Dice::new(1), faults);
    let room = front.can_transmit().unwrap();
    for round in 0..3 {
        for _ in 0..room {
            front.transmit(&frame(HOST, GUEST, 60, round)).unwrap();
        }
        assert_eq!(front.can_transmit(), Ok(0));
        front.publish().unwrap();
        machine.run();
        assert_eq!(front.can_transmit(), Ok(room), "round {round}");
    }
    assert!(back.faults_hit() >= 3);
}

#[test]
fn a_machine_with_a_device_goes_when_the_test_lets_go_of_it() {
    let machine = Machine::new();
    let gone = machine.xen.downgrade();
    {
        let _back = machine.vif(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        drop(machine.connect(&mut xs).unwrap());
        assert_eq!(machine.connect(&mut xs).map(drop), Ok(()));
    }
    assert!(gone.is_alive());
    drop(machine);
    assert!(!gone.is_alive());
}

#[test]
fn a_backend_can_be_in_any_domain() {
    let machine = Machine::new();
    let back = machine.vif(Options { domain: DomId(3), ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { control_ring: true, ..Config::default() };
    let mut front = machine.connect_with::<2>(&mut xs, config).unwrap();
    assert_eq!((front.backend(), front.queues()), (Some(DomId(3)), 2));
    front.transmit(&frame(HOST, GUEST, 60, 1)).unwrap();
    machine.switch.send(frame(GUEST, HOST, 70, 2));
    front.publish().unwrap();
    machine.run();
    assert_eq!(machine.switch.receive().unwrap().bytes, frame(HOST, GUEST, 60, 1));
    assert_eq!(front.receive(&mut [0; 70]), Ok(Some(70)));
    let soon = machine.soon();
    front.control(soon).unwrap().set_hash_algorithm(1).unwrap();
    // Another backend in the same place may be in another domain.
    let page = machine.grants.share(DomId(0), Access::ReadOnly).unwrap();
    let mut part = [FramePage::new(page, 0, 60)];
    assert_eq!(front.transmit_pages(&mut part, TxMeta::default()), Err(Error::Page));
    front.close(&mut xs, machine.soon()).unwrap();
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn a_backend_keeps_to_what_it_said() {
    let machine = Machine::new();
    let back = machine.vif(Options { sg: false, gso_v4: false, ..Options::default() });
    back.lie("feature-sg", Some("1"));
    back.lie("feature-gso-tcpv4", Some("1"));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    // What it says later it was not asked.
    back.set_back("feature-sg", "0");
    let gso = Some(Gso::new(GsoKind::TcpV4, 1400));
    let large = tcp(false, true, 1, &bytes(20_000));
    front.transmit_with(&[&large], TxMeta::new(Checksum::Blank, gso)).unwrap();
    front.publish().unwrap();
    machine.run();
    assert_eq!(machine.switch.receive().unwrap().gso, gso);
    assert_eq!(back.complaints(), [""; 0]);
}
