//! A network device: any calls, against a backend that has bad days, lies, or writes anywhere in the rings. What must hold is
//! said by the model beside the mock, `xen_netfront::mock::model`, which the driver's own tests share.

mod plan;

use xen_hypercall::mock::Dice;
use xen_netfront::mock::model::{Model, Place};
use xen_netfront::mock::{MockNetback, MockSwitch};

use crate::input::{Input, Number, Ops};
use crate::machine::{Machine, attempt};
pub use plan::{FaultInput, Op, Plan};

/// Tries an input.
pub fn run(data: &[u8]) {
    attempt(data, |plan: &Plan| attempt_plan(plan));
}

fn attempt_plan(plan: &Plan) {
    let machine = Machine::new();
    let switch = MockSwitch::new(&machine.xen);
    let back = MockNetback::new(&switch, &machine.store, &machine.guest, 0, plan.options());
    let Machine { guest, store, token, events, grants, xen } = &machine;
    let place = Place { xen, guest, store, switch: &switch, back: &back, token, events, grants };
    let mut model = Model::new(place, plan.config(), Dice::new(plan.seed.into()), plan.faults());
    plan.ops.0.iter().for_each(|op| model.step(&op.model()));
    model.finish();
}

/// Inputs to begin with.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let plan = Plan {
        offers: 0x7f,
        send: 0xff,
        receive: 0xff,
        tx_pages: 23,
        rx_pages: 31,
        split: false,
        seed: 1,
        faults: [0; 20],
        ops: Ops(Vec::new()),
    };
    let traffic = || {
        vec![
            Op::Transmit { v6: false, len: 100, cut: None },
            Op::Transmit { v6: true, len: 8000, cut: Some(1400) },
            Op::TransmitPages { len: 5000 },
            Op::Host { v6: false, len: 3000, cut: Some(900), times: 3 },
            Op::Host { v6: true, len: 99, cut: None, times: 5 },
            Op::Publish,
            Op::Run,
            Op::Receive { times: 20 },
            Op::ReceivePages,
            Op::Arm,
        ]
    };
    let with = |more: Vec<Op>| Ops([traffic(), more, traffic()].concat());
    let one_queue = Plan { offers: 0x1f, ..plan.clone() };
    let lies = std::array::from_fn(|i| if i > 12 { 140 } else { 0 });
    let misfortunes = std::array::from_fn(|i| if i <= 12 { 140 } else { 0 });
    vec![
        ("traffic", Plan { ops: with(vec![]), ..one_queue.clone() }.bytes()),
        ("two-queues", Plan { ops: with(vec![Op::Service]), split: true, ..plan.clone() }.bytes()),
        ("rounds", {
            let ops = Ops((0..6).flat_map(|_| traffic()).collect());
            Plan { tx_pages: 15, rx_pages: 3, ops, ..one_queue.clone() }.bytes()
        }),
        ("plain", Plan { offers: 0, ops: with(vec![]), ..plan.clone() }.bytes()),
        (
            "misfortunes",
            Plan { faults: misfortunes, ops: with(vec![Op::Service, Op::Reconnect]), ..plan.clone() }.bytes(),
        ),
        ("lies", Plan { faults: lies, ops: with(vec![Op::Service]), ..one_queue.clone() }.bytes()),
        ("away-and-back", {
            let ops = with(vec![Op::Vanish, Op::Service, Op::Run, Op::ComeBack, Op::Service, Op::Reconnect]);
            Plan { ops, ..one_queue.clone() }.bytes()
        }),
        ("suspended", {
            let suspend = |migrate| [traffic(), vec![Op::Suspend { migrate }, Op::Run]].concat();
            let ops = with([suspend(true), suspend(false), suspend(true)].concat());
            Plan { ops, split: true, ..plan.clone() }.bytes()
        }),
        ("index", {
            let number = Number::Power { bit: 8, more: 1 };
            Plan {
                ops: with(vec![Op::Index { tx: false, queue: false, word: 2, number }]),
                ..one_queue.clone()
            }
            .bytes()
        }),
        ("twice", {
            let wrong = vec![
                Op::Transmit { v6: false, len: 100, cut: None },
                Op::Transmit { v6: false, len: 200, cut: None },
                Op::Spoil { tx: true, fault: FaultInput::Twice },
                Op::Publish,
                Op::Run,
            ];
            Plan {
                faults: std::array::from_fn(|i| if i == 2 { 250 } else { 0 }),
                ops: with(wrong),
                ..one_queue.clone()
            }
            .bytes()
        }),
        ("wrong-id", {
            let fault = FaultInput::Id { id: 300 };
            Plan { ops: with(vec![Op::Spoil { tx: true, fault }]), ..one_queue.clone() }.bytes()
        }),
        ("outside", {
            let fault = FaultInput::Offset { offset: 4090 };
            let wrong = vec![
                Op::Spoil { tx: false, fault },
                Op::Host { v6: false, len: 101, cut: None, times: 2 },
                Op::Run,
                Op::Receive { times: 9 },
            ];
            Plan { ops: with(wrong), ..one_queue.clone() }.bytes()
        }),
        ("taken-up-again", {
            let ops =
                with(vec![Op::Multicast { number: 1, wanted: true }, Op::Restart, Op::Run, Op::Service]);
            Plan { offers: 0x9f, ops, ..one_queue.clone() }.bytes()
        }),
        (
            "forced",
            Plan { ops: with(vec![Op::ForceDetach, Op::Run, Op::Service]), ..one_queue.clone() }.bytes(),
        ),
        (
            "held",
            Plan { ops: with(vec![Op::Hold { on: true }, Op::Detach, Op::Run, Op::Service]), ..one_queue }
                .bytes(),
        ),
    ]
}
