//! Every typed call: its number, its arguments in their places, its structure byte for byte, and its error handed on.
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "of each call only a record is made: nothing happens to memory"
)]
#![allow(clippy::redundant_closure, reason = "cases look alike")]

#[path = "marshalling/cases.rs"]
mod cases;

use std::sync::{Arc, Mutex};

use cases::Arg::{Address, Is, Structure};
use cases::Case;
use xen_hypercall::abi::*;
use xen_hypercall::mock::MockXen;
use xen_hypercall::multicall::Multicall;
use xen_hypercall::{DomId, Errno, Gfn, Hypercall, HypercallNr as Nr, VcpuId};
use xen_hypercall::{console_io, hvm, memory, sched, vcpu, version};
use zerocopy::IntoBytes;

type Seen = Arc<Mutex<Vec<([usize; 5], Vec<u8>)>>>;

fn check(case: &Case, answer: isize) -> Result<(), Errno> {
    let xen = MockXen::new();
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let pointer = case.args.iter().position(|arg| matches!(arg, Structure));
    let len = case.structure.len();
    xen.register(case.nr, move |_, args| {
        let bytes = pointer.map_or(Vec::new(), |index| {
            let pointer = core::ptr::with_exposed_provenance::<u8>(args[index]);
            // SAFETY: the typed call lends a structure of this size, or the case is wrong and the test fails.
            unsafe { core::slice::from_raw_parts(pointer, len) }.to_vec()
        });
        log.lock().unwrap().push((args, bytes));
        answer
    });
    let result = (case.call)(&xen.domain(DomId(1)));
    let what = case.what;
    let seen = core::mem::take(&mut *seen.lock().unwrap());
    let [(args, bytes)] = &seen[..] else { panic!("{what}: {} calls of {:?}", seen.len(), case.nr) };
    for (index, (arg, expected)) in args.iter().zip(case.args).enumerate() {
        match expected {
            Is(value) => assert_eq!(*arg, value, "{what}: argument {index}"),
            Structure | Address => assert_ne!(*arg, 0, "{what}: argument {index}"),
        }
    }
    let mut bytes = bytes.clone();
    for at in &case.addresses {
        assert_ne!(bytes[*at..at + 8], [0; 8], "{what}: an address at {at}");
        bytes[*at..at + 8].fill(0);
    }
    assert_eq!(bytes, case.structure, "{what}: structure");
    result
}

#[test]
fn every_typed_call_is_marshalled_as_the_headers_say_and_hands_its_error_on() {
    for case in cases::all() {
        // ENOSYS and EAGAIN make some calls try again in another way; `guest.rs` has those.
        for errno in [Errno::EPERM, Errno::EOPNOTSUPP, Errno(4095)] {
            assert_eq!(check(&case, errno.as_return()), Err(errno), "{}", case.what);
        }
        assert_eq!(check(&case, 0), Ok(()), "{}", case.what);
    }
}

#[test]
fn a_multicall_hands_over_its_entries_in_order() {
    let xen = MockXen::new();
    let guest = xen.domain(DomId(1));
    let seen = Seen::default();
    for (nr, log) in [Nr::EVENT_CHANNEL_OP, Nr::SCHED_OP].map(|nr| (nr, Arc::clone(&seen))) {
        xen.register(nr, move |_, args| {
            log.lock().unwrap().push((args, vec![nr.0 as u8]));
            if nr == Nr::SCHED_OP { Errno::EBUSY.as_return() } else { args[0] as isize }
        });
    }
    let (mut a, mut b) = (EvtchnSend { port: 1 }, EvtchnClose { port: 2 });
    let mut calls = Multicall::<3>::default();
    assert!(calls.is_empty());
    let first = calls.add(&mut a).unwrap();
    // SAFETY: the handler looks at no argument.
    let second = unsafe { calls.add_raw(Nr::SCHED_OP, [1, 2, 3, 4, 5]) }.unwrap();
    let third = calls.add(&mut b).unwrap();
    assert_eq!(calls.len(), 3);
    // SAFETY: as above.
    assert!(unsafe { calls.add_raw(Nr::SCHED_OP, [0; 5]) }.is_err(), "there is room for three");
    let results = calls.run(&guest).unwrap();
    assert_eq!(results.get(first), Some(Ok(4)));
    assert_eq!(results.get(second), Some(Err(Errno::EBUSY)));
    assert_eq!(results.get(third), Some(Ok(3)));
    assert!(!results.all_succeeded() && results.iter().count() == 3);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().map(|(_, nr)| nr[0]).collect::<Vec<_>>(), [32, 29, 32]);
    assert_eq!(seen[1].0, [1, 2, 3, 4, 5]);
    assert!(seen[0].0[2..] == [0; 3] && seen[0].0[1] == (&raw const a).addr());
}

#[test]
fn a_multicall_within_a_multicall_is_refused() {
    let guest = MockXen::new().domain(DomId(1));
    let mut calls = Multicall::<1>::new();
    // SAFETY: a multicall of no entries reads nothing.
    let inner = unsafe { calls.add_raw(Nr::MULTICALL, [0; 5]) }.unwrap();
    assert_eq!(calls.run(&guest).unwrap().get(inner), Some(Err(Errno::EINVAL)));
}

#[test]
fn a_vcpus_registers_come_to_the_start_of_the_union() {
    let long = VcpuHvmX8664 { rax: 1, rip: 9, efer: 14, ..Default::default() };
    let context = VcpuHvmContext::from(long);
    assert_eq!((context.mode, context.pad), (VCPU_HVM_MODE_64B, 0));
    assert_eq!(context.cpu_regs, [1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 14, 0]);
    let protected = VcpuHvmX8632 { eax: 1, ecx: 2, efer: 7, tr_ar: 0x8B, ..Default::default() };
    let context = VcpuHvmContext::from(protected);
    assert_eq!((context.mode, context.cpu_regs[0], context.cpu_regs[7]), (VCPU_HVM_MODE_32B, 2 << 32 | 1, 7));
    assert_eq!(context.as_bytes()[8..128], *protected.as_bytes());
}

#[test]
fn lists_of_unequal_length_are_not_handed_over() {
    let guest = MockXen::new().domain(DomId(1));
    let batch = |indexes: &[u64], frames: &[Gfn], results: &mut [i32]| {
        let space = memory::PhysmapSpace::GRANT_TABLE;
        // SAFETY: Xen is never asked.
        unsafe { memory::add_to_physmap_batch(&guest, space, None, indexes, frames, results) }
    };
    assert_eq!(batch(&[1], &[], &mut [0]), Err(Errno::EINVAL));
    assert_eq!(batch(&[1], &[Gfn(1)], &mut []), Err(Errno::EINVAL));
    let many = vec![0; 65536];
    assert_eq!(batch(&many, &vec![Gfn(0); 65536], &mut vec![0; 65536]), Err(Errno::E2BIG));
    assert_eq!(guest.xen().trace_text(), "");
}

#[test]
fn places_that_no_page_has_are_not_registered() {
    let guest = MockXen::new().domain(DomId(1));
    for (gfn, offset, errno) in [
        (1, 4, Errno::ENXIO),
        (1, 4096, Errno::ENXIO),
        (1, u32::MAX - 7, Errno::ENXIO),
        (1 << 52, 0, Errno::EINVAL),
        (u64::MAX, 8, Errno::EINVAL),
    ] {
        let place = Some((Gfn(gfn), offset));
        // SAFETY: Xen is never asked.
        unsafe {
            assert_eq!(vcpu::register_runstate_page(&guest, VcpuId(0), place), Err(errno), "{place:?}");
            assert_eq!(vcpu::register_time_page(&guest, VcpuId(0), place), Err(errno), "{place:?}");
        }
    }
    assert_eq!(guest.xen().trace_text(), "");
}

#[test]
fn safe_code_sets_only_parameters_of_a_list() {
    use hvm::HvmParam;
    let guest = MockXen::new().domain(DomId(1));
    let allowed = [
        HvmParam::STORE_EVTCHN,
        HvmParam::CONSOLE_EVTCHN,
        HvmParam::ACPI_IOPORTS_LOCATION,
        HvmParam::X87_FIP_WIDTH,
    ];
    for param in (0..=64).chain([u32::MAX]).map(HvmParam) {
        if param == HvmParam::CALLBACK_IRQ || allowed.contains(&param) {
            assert_eq!(hvm::set_param(&guest, param, 0), Ok(()), "{param:?}");
        } else {
            let asked = guest.xen().trace_text();
            assert_eq!(hvm::set_param(&guest, param, 0), Err(Errno::EPERM), "{param:?}");
            assert_eq!(guest.xen().trace_text(), asked, "{param:?} went to Xen");
        }
    }
}

#[test]
fn no_reason_of_safe_code_lets_a_domain_go_on_afterwards() {
    use sched::{ShutdownCode, ShutdownReason as Reason};
    for reason in [Reason::POWEROFF, Reason::REBOOT, Reason::CRASH, Reason::WATCHDOG] {
        assert!(!matches!(reason.code(), ShutdownCode::SUSPEND | ShutdownCode::SOFT_RESET), "{reason:?}");
        assert_eq!(ShutdownCode::from(reason), reason);
    }
}

#[test]
fn no_event_interrupts_at_the_vector_of_an_exception() {
    use hvm::{HvmParam, Vector};
    let guest = MockXen::new().domain(DomId(1));
    let set = |value| hvm::set_param(&guest, HvmParam::CALLBACK_IRQ, value);
    for number in 0..=u8::MAX {
        let vector = Vector::new(number);
        assert_eq!(vector.is_some(), number >= 32, "{number}");
        assert_eq!(vector.map(Vector::number).unwrap_or(number), number);
        let raw = 2 << 56 | u64::from(number);
        let expected = if number >= 32 { Ok(()) } else { Err(Errno::EINVAL) };
        assert_eq!(set(raw), expected, "{number}");
        assert_eq!(vector.map(hvm::callback_vector).unwrap_or(raw), raw);
    }
    // A vector with more above its byte, and kinds of callback that no Xen has yet.
    for value in [2 << 56 | 0x10E, 2 << 56 | 1 << 40 | 0x31, 3 << 56 | 0x31, u64::MAX] {
        assert_eq!(set(value), Err(Errno::EINVAL), "{value:#x}");
    }
    // A line of an interrupt controller, or none at all.
    for value in [0, 9, 1 << 56 | 3 << 11] {
        assert_eq!(set(value), Ok(()), "{value:#x}");
    }
}

#[test]
fn a_count_from_xen_never_exceeds_what_was_asked_for() {
    struct Liar;
    // SAFETY: it does nothing.
    unsafe impl Hypercall for Liar {
        unsafe fn hypercall(&self, _: Nr, _: [usize; 5]) -> isize {
            isize::MAX
        }
    }
    assert_eq!(console_io::read(&Liar, &mut [0; 8]), Ok(8));
    // SAFETY: nothing happens to the frames.
    unsafe {
        assert_eq!(memory::decrease_reservation(&Liar, &[Gfn(1); 3], 0), Ok(3));
        assert_eq!(memory::populate_physmap(&Liar, &mut [Gfn(1); 3], 0, memory::MemFlags::NONE), Ok(3));
    }
    assert_eq!(version::build_id(&Liar).unwrap().as_bytes().len(), version::BuildId::MAX);
}
