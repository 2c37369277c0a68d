//! What may happen to a console, and how its daemon fails.

use std::time::Duration;

use proptest::prelude::*;
use xen_console::LINE;
use xen_console::mock::Faults;
use xen_console::mock::model::Act;
use xen_hypercall::mock::Chance;

pub fn act() -> impl Strategy<Value = Act> {
    let len = || prop_oneof![3 => 0_usize..50, 1 => 0_usize..5000];
    let time = || (0_u64..10).prop_map(Duration::from_millis);
    prop_oneof![
        3 => len().prop_map(Act::Write),
        3 => (len(), time()).prop_map(|(len, patience)| Act::WriteAll(len, patience)),
        4 => (0..=LINE, any::<bool>(), time()).prop_map(|(len, ends, patience)| Act::Text(len, ends, patience)),
        4 => (0..=LINE).prop_map(Act::Print),
        4 => len().prop_map(Act::Read),
        3 => len().prop_map(Act::Type),
        1 => time().prop_map(Act::Drain),
        2 => time().prop_map(Act::WaitReadable),
        1 => time().prop_map(Act::WaitWritable),
        1 => Just(Act::PollReadable),
        1 => (0_usize..3000).prop_map(Act::Emergency),
        2 => any::<bool>().prop_map(Act::Stall),
        2 => any::<bool>().prop_map(Act::StallReader),
        2 => prop::sample::select(&[Act::Run, Act::Step, Act::Dispatch, Act::Event][..]),
    ]
}

pub fn faults() -> impl Strategy<Value = Faults> {
    let chance = || prop_oneof![Just(Chance::NEVER), (1_u8..90).prop_map(Chance::percent)];
    let jump = prop_oneof![3 => Just(Chance::NEVER), 1 => (1_u8..10).prop_map(Chance::percent)];
    (chance(), chance(), chance(), chance(), jump).prop_map(|(stalls, read, write, event, jump)| {
        let mut faults = Faults::new();
        faults.stalls = stalls;
        faults.short_read = read;
        faults.short_write = write;
        faults.spurious_event = event;
        faults.index_jump = jump;
        faults
    })
}
