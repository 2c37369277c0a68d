//! What Xen 4.17 answers an HVM or PVH guest, and what its calls do, on the mock.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use std::sync::Arc;

use xen_hypercall::abi::{VcpuHvmContext, VcpuHvmX8664, VcpuRunstateInfo};
use xen_hypercall::assist::{self, Assist};
use xen_hypercall::hvm::{HvmParam, MemType};
use xen_hypercall::memory::{MemFlags, MemoryRange, PhysmapSpace};
use xen_hypercall::mock::{MockDomain, MockXen, TraceOnPanic};
use xen_hypercall::sched::{ShutdownCode, ShutdownReason};
use xen_hypercall::version::LongText;
use xen_hypercall::{
    DomId, Errno, Gfn, Hypercall, HypercallNr, PageMemory, VcpuArea, VcpuId, console_io, event, hvm, memory,
    physdev, sched, vcpu, version,
};

const SECOND: Duration = Duration::from_secs(1);

fn machine() -> (MockXen, MockDomain, MockDomain, TraceOnPanic) {
    let xen = MockXen::new();
    let (dom0, guest) = (xen.domain(DomId(0)), xen.domain(DomId(1)));
    let trace = TraceOnPanic::new(&xen);
    (xen, dom0, guest, trace)
}

#[test]
fn commands_and_calls_that_do_not_exist() {
    let (_, _, guest, _trace) = machine();
    let calls = [
        HypercallNr::MEMORY_OP,
        HypercallNr::XEN_VERSION,
        HypercallNr::VCPU_OP,
        HypercallNr::SCHED_OP,
        HypercallNr::HVM_OP,
        HypercallNr::PHYSDEV_OP,
        HypercallNr::EVENT_CHANNEL_OP,
        HypercallNr(63),
    ];
    for nr in calls {
        // SAFETY: no call has this command, so none looks at the arguments.
        let result = unsafe { guest.hypercall(nr, [0x30, 0, 0, 0, 0]) };
        assert_eq!(result, Errno::ENOSYS.as_return(), "{nr:?}");
    }
    // A null pointer where a structure is wanted.
    for (nr, command) in [(HypercallNr::SCHED_OP, 2), (HypercallNr::HVM_OP, 1), (HypercallNr::MEMORY_OP, 7)] {
        // SAFETY: a call does not follow a null pointer.
        let result = unsafe { guest.hypercall(nr, [command, 0, 0, 0, 0]) };
        assert_eq!(result, Errno::EFAULT.as_return(), "{nr:?}");
    }
}

#[test]
fn the_first_reason_to_end_is_the_one_that_counts() {
    let (xen, dom0, guest, _trace) = machine();
    sched::set_shutdown_code(&guest, ShutdownReason::REBOOT).unwrap();
    sched::set_shutdown_code(&guest, ShutdownReason::CRASH).unwrap();
    assert_eq!(guest.shutdown_reason(), None);
    sched::shutdown(&guest, ShutdownReason::POWEROFF).unwrap();
    assert_eq!(guest.shutdown_reason(), Some(ShutdownCode::REBOOT));

    let other = xen.domain(DomId(2));
    assert_eq!(sched::remote_shutdown(&other, DomId(0), ShutdownReason::CRASH), Err(Errno::EPERM));
    assert_eq!(sched::remote_shutdown(&dom0, DomId(9), ShutdownReason::CRASH), Err(Errno::ESRCH));
    assert_eq!(sched::remote_shutdown(&dom0, DomId::SELF, ShutdownReason::CRASH), Err(Errno::ESRCH));
    sched::remote_shutdown(&dom0, DomId(2), ShutdownReason::CRASH).unwrap();
    assert_eq!(other.shutdown_reason(), Some(ShutdownCode::CRASH));
    assert_eq!(sched::pin_override(&guest, None), Err(Errno::EPERM));
    assert_eq!(sched::pin_override(&dom0, Some(1 << 20)), Err(Errno::EINVAL));
    assert_eq!(sched::pin_override(&dom0, Some(1)), Ok(()));
}

#[test]
fn a_suspended_domain_learns_how_it_goes_on() {
    let (xen, _, guest, _trace) = machine();
    // SAFETY: nothing of Xen's is mapped.
    assert_eq!(unsafe { sched::suspend(&guest) }, Ok(sched::Resumed::InNewDomain));
    assert_eq!(guest.shutdown_reason(), None, "a new domain has not ended");
    xen.register(HypercallNr::SCHED_OP, |_, _| 1);
    // SAFETY: as above.
    assert_eq!(unsafe { sched::suspend(&guest) }, Ok(sched::Resumed::InPlace));
    xen.register(HypercallNr::SCHED_OP, |_, _| Errno::EBUSY.as_return());
    // SAFETY: as above.
    assert_eq!(unsafe { sched::suspend(&guest) }, Err(Errno::EBUSY));
}

#[test]
fn a_third_watchdog_is_refused_as_real_xen_does_it() {
    let (xen, _, guest, _trace) = machine();
    // Xen 4.17 answers -ENOSPC without the upper half's sign.
    xen.register(HypercallNr::SCHED_OP, |_, _| (-28_i32 as u32) as isize);
    assert_eq!(sched::start_watchdog(&guest, SECOND), Err(Errno::ENOSPC));
}

#[test]
fn a_watchdog_bites_unless_it_is_poked() {
    let (xen, _, guest, _trace) = machine();
    let first = sched::start_watchdog(&guest, 3 * SECOND).unwrap();
    let second = sched::start_watchdog(&guest, 60 * SECOND).unwrap();
    assert_eq!(sched::start_watchdog(&guest, SECOND), Err(Errno::ENOSPC));
    for _ in 0..5 {
        xen.advance(2 * SECOND);
        sched::poke_watchdog(&guest, first, 3 * SECOND).unwrap();
    }
    sched::stop_watchdog(&guest, second).unwrap();
    assert_eq!(sched::poke_watchdog(&guest, second, SECOND), Err(Errno::EINVAL));
    assert_eq!(sched::stop_watchdog(&guest, second), Err(Errno::EINVAL));
    xen.advance(Duration::from_millis(2999));
    assert_eq!(guest.shutdown_reason(), None);
    xen.advance(Duration::from_millis(1));
    assert_eq!(guest.shutdown_reason(), Some(ShutdownCode::WATCHDOG));
}

#[test]
fn a_poll_whose_deadline_is_the_beginning_of_time_ends() {
    let (xen, _, guest, _trace) = machine();
    // Nothing else would end it: the mock panics where a domain waits for ever.
    sched::poll(&guest, &[], Some(Duration::ZERO)).unwrap();
    assert!(xen.now() <= Duration::from_nanos(1));
    xen.advance(SECOND);
    let now = xen.now();
    sched::poll(&guest, &[7], Some(Duration::ZERO)).unwrap();
    assert_eq!(xen.now(), now);
}

#[test]
fn a_time_beyond_xens_numbers_is_far_ahead_and_has_not_passed() {
    let (xen, _, guest, _trace) = machine();
    let fired = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&fired);
    xen.set_timer_hook(move |_, _| {
        count.fetch_add(1, Relaxed);
    });
    vcpu::set_singleshot_timer(&guest, VcpuId(0), Duration::MAX).unwrap();
    xen.advance(1000 * SECOND);
    assert_eq!(fired.load(Relaxed), 0, "not at once");
    vcpu::stop_singleshot_timer(&guest, VcpuId(0)).unwrap();
    sched::poll(&guest, &[], Some(Duration::MAX)).unwrap();
    assert!(xen.now() > Duration::from_secs(9_000_000_000), "it slept for centuries: {:?}", xen.now());
}

#[test]
fn blocking_and_polling_let_time_pass() {
    let (xen, _, guest, _trace) = machine();
    vcpu::set_timer(&guest, Some(SECOND)).unwrap();
    sched::block(&guest).unwrap();
    assert_eq!(xen.now(), SECOND);
    sched::poll(&guest, &[], Some(3 * SECOND)).unwrap();
    assert_eq!(xen.now(), 3 * SECOND);
    assert_eq!(sched::poll(&guest, &[1; 129], Some(SECOND)), Err(Errno::EINVAL));
    // A pending port ends it at once, masked or not.
    let token = guest.boot().unwrap();
    let shared = token.shared_info();
    shared.evtchn_pending(1).unwrap().store(1 << 6, Relaxed);
    shared.evtchn_mask(1).unwrap().store(1 << 6, Relaxed);
    sched::poll(&guest, &[3, 70], Some(9 * SECOND)).unwrap();
    assert_eq!(xen.now(), 3 * SECOND);
    sched::poll(&guest, &[3], Some(9 * SECOND)).unwrap();
    assert_eq!(xen.now(), 9 * SECOND);
}

#[test]
#[should_panic(expected = "waits for ever")]
fn blocking_for_ever_fails_the_test_instead() {
    let _ = sched::block(&MockXen::new().domain(DomId(1)));
}

#[test]
fn set_timer_op_has_its_own_idea_of_the_future() {
    let (xen, _, guest, _trace) = machine();
    let fired = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&fired);
    xen.set_timer_hook(move |domain, _| log.lock().unwrap().push(domain.xen().now()));
    // Absurdly far ahead is 100 ms.
    vcpu::set_timer(&guest, Some(Duration::MAX)).unwrap();
    xen.advance(SECOND);
    vcpu::set_timer(&guest, Some(Duration::ZERO)).unwrap();
    vcpu::set_timer(&guest, Some(2 * SECOND)).unwrap();
    vcpu::set_timer(&guest, None).unwrap();
    xen.advance(SECOND);
    assert_eq!(*fired.lock().unwrap(), [Duration::from_millis(100), SECOND]);
    vcpu::set_periodic_timer(&guest, VcpuId(0), SECOND).unwrap();
    xen.advance(3 * SECOND);
    vcpu::stop_periodic_timer(&guest, VcpuId(0)).unwrap();
    xen.advance(3 * SECOND);
    assert_eq!(fired.lock().unwrap()[2..], [3 * SECOND, 4 * SECOND, 5 * SECOND]);
    for period in [Duration::from_micros(999), Duration::from_nanos(u64::MAX / 4 + 1)] {
        assert_eq!(vcpu::set_periodic_timer(&guest, VcpuId(0), period), Err(Errno::EINVAL));
    }
}

#[test]
fn a_vcpu_is_initialised_once_and_comes_up_and_goes_down() {
    let (xen, _, guest, _trace) = machine();
    guest.set_vcpus(2);
    let one = VcpuId(1);
    assert_eq!(vcpu::up(&guest, one), Err(Errno::EINVAL), "it has no state to run from");
    let good =
        VcpuHvmX8664 { rip: 0x10_0000, cr0: 1 << 31 | 1, cr4: 1 << 5, efer: 1 << 8, ..Default::default() };
    // SAFETY: the mock runs nothing.
    let initialise = |vcpu, registers: VcpuHvmContext| unsafe { vcpu::initialise(&guest, vcpu, &registers) };
    let bad = [
        VcpuHvmX8664 { cr0: 1, ..good },
        VcpuHvmX8664 { cr4: 0, ..good },
        VcpuHvmX8664 { efer: 0, ..good },
        VcpuHvmX8664 { rip: 1 << 47, ..good },
    ];
    for registers in bad {
        assert_eq!(initialise(one, registers.into()), Err(Errno::EINVAL));
    }
    assert_eq!(initialise(one, VcpuHvmContext { pad: 1, ..good.into() }), Err(Errno::EINVAL));
    assert_eq!(initialise(one, VcpuHvmContext { mode: 2, ..good.into() }), Err(Errno::EINVAL));
    assert_eq!(initialise(one, good.into()), Ok(()));
    assert_eq!(initialise(one, good.into()), Err(Errno::EEXIST));
    assert_eq!(initialise(VcpuId(0), good.into()), Err(Errno::EEXIST), "it runs already");
    assert_eq!(initialise(VcpuId(2), good.into()), Err(Errno::ENOENT));
    assert_eq!(guest.vcpu_context(one), Some(good.into()));

    xen.advance(2 * SECOND);
    assert_eq!(vcpu::is_up(&guest, one), Ok(false));
    vcpu::up(&guest, one).unwrap();
    xen.advance(3 * SECOND);
    assert_eq!(vcpu::is_up(&guest, one), Ok(true));
    vcpu::down(&guest, one).unwrap();
    xen.advance(SECOND);
    let times = vcpu::run_times(&guest, one).unwrap();
    assert_eq!((times.state, times.since), (vcpu::RunState::OFFLINE, 5 * SECOND));
    assert_eq!((times.running, times.offline, times.blocked), (3 * SECOND, 3 * SECOND, Duration::ZERO));
    let mut area = VcpuRunstateInfo::default();
    // SAFETY: the area is not looked at while Xen may write to it, which the mock does at once.
    unsafe { vcpu::register_runstate_area(&guest, VcpuId(0), &raw mut area) }.unwrap();
    assert_eq!((area.state, area.time[0]), (0, 6_000_000_000));

    vcpu::send_nmi(&guest, one).unwrap();
    assert_eq!((guest.nmis(one), guest.nmis(VcpuId(0))), (1, 0));
    assert_eq!(vcpu::physical_id(&guest, one), Err(Errno::EINVAL));
    assert_eq!(vcpu::down(&guest, VcpuId(5)), Err(Errno::ENOENT));
    vcpu::down(&guest, VcpuId(0)).unwrap();
    assert_eq!(guest.shutdown_reason(), Some(ShutdownCode::POWEROFF), "the last one has gone");
}

#[test]
fn a_vcpus_events_move_to_a_page_of_its_own() {
    let (_, _, guest, _trace) = machine();
    guest.set_vcpus(40);
    let token = guest.boot().unwrap();
    let shared = token.shared_info();
    let high = VcpuId(39);
    assert!(shared.vcpu(high).is_none() && guest.vcpu_area(high).is_none());
    let area = VcpuArea::register(&token, high).unwrap();
    assert_eq!(area.info().pending_sel.load(Relaxed), u64::MAX, "all may be pending");
    assert_eq!(area.info().upcall_pending.load(Relaxed), 1);
    // Both sides mean the same place.
    guest.vcpu_area(high).unwrap().info().pending_sel.store(5, Relaxed);
    assert_eq!(area.info().pending_sel.load(Relaxed), 5);

    let pages = guest.pages_in_use();
    assert!(matches!(VcpuArea::register(&token, high), Err(Errno::EINVAL)), "once is all");
    assert_eq!(guest.pages_in_use(), pages, "the page is given back");
    assert!(matches!(VcpuArea::register(&token, VcpuId(40)), Err(Errno::ENOENT)));
    let page = guest.gfn(guest.alloc_pages(1).unwrap());
    let size = xen_hypercall::abi::shared_info::VCPU_INFO_SIZE as u32;
    // SAFETY: the page was allocated for this.
    let at = |vcpu, gfn, offset| unsafe { vcpu::register_vcpu_info(&guest, VcpuId(vcpu), gfn, offset) };
    assert_eq!(at(1, page, 4), Err(Errno::ENXIO));
    assert_eq!(at(1, page, 4096 - size + 8), Err(Errno::ENXIO));
    assert_eq!(at(1, Gfn(0xDEAD), 0), Err(Errno::EINVAL));
    assert_eq!(at(1, page, 4096 - size), Ok(()));
    assert_eq!(at(0, page, 0), Ok(()), "itself");
}

#[test]
fn memory_goes_to_xen_and_comes_back() {
    let (_, dom0, guest, _trace) = machine();
    let page = guest.alloc_pages(4).unwrap();
    let first = guest.gfn(page);
    let count = |domain: &MockDomain| memory::current_reservation(domain, DomId(1));
    assert_eq!((count(&guest), count(&dom0)), (Ok(4), Ok(4)));
    assert_eq!(memory::current_reservation(&guest, DomId(0)), Err(Errno::EPERM));
    assert_eq!(memory::current_reservation(&guest, DomId(7)), Err(Errno::ESRCH));
    assert_eq!(memory::maximum_gpfn(&guest, DomId::SELF), Ok(first.0 as usize + 3));

    // SAFETY: the pages were allocated for this and are used by nobody.
    unsafe {
        let two = [Gfn(first.0 + 1), Gfn(first.0 + 2), Gfn(0xDEAD)];
        assert_eq!(memory::decrease_reservation(&guest, &two, 0), Ok(2), "the third is no memory");
        assert_eq!(count(&guest), Ok(2));
        assert!(guest.page_at(two[0]).is_none() && guest.page_at(first).is_some());
        assert_eq!(hvm::mem_type(&guest, two[0]), Ok(MemType::MMIO));
        assert_eq!(hvm::mem_type(&guest, first), Ok(MemType::RAM));
        assert_eq!(memory::remove_from_physmap(&guest, two[0]), Err(Errno::ENOENT));

        guest.set_max_pages(3);
        assert_eq!(memory::maximum_reservation(&guest, DomId::SELF), Ok(3));
        assert_eq!(memory::populate_physmap(&guest, &mut [two[0], two[1]], 0, MemFlags::NONE), Ok(1));
        assert_eq!((count(&guest), guest.page_at(two[0]).is_some()), (Ok(3), true));
        assert_eq!(memory::remove_from_physmap(&guest, first), Ok(()));
        // An extent of two pages, of which one does not fit.
        assert_eq!(memory::populate_physmap(&guest, &mut [Gfn(0x8000)], 1, MemFlags::NONE), Ok(0));
        assert_eq!(memory::populate_physmap(&guest, &mut [Gfn(0x8000)], 20, MemFlags::NONE), Ok(0));
    }
}

#[test]
fn pages_of_xens_are_put_where_the_guest_likes() {
    let (xen, _, guest, _trace) = machine();
    xen.register_physmap_space(1, |_, index, _| if index < 2 { Ok(()) } else { Err(Errno::EINVAL) });
    let page = guest.gfn(guest.alloc_pages(3).unwrap());
    let frames = [page, Gfn(page.0 + 1), Gfn(page.0 + 2)];
    let mut results = [9; 3];
    // SAFETY: the pages were allocated for this.
    unsafe {
        let space = PhysmapSpace::GRANT_TABLE;
        memory::add_to_physmap_batch(&guest, space, None, &[0, 7, 1], &frames, &mut results).unwrap();
        assert_eq!(results, [0, -22, 0]);
        let add = |space, index| memory::add_to_physmap(&guest, space, index, page);
        assert_eq!(add(PhysmapSpace::SHARED_INFO, 1), Err(Errno::EINVAL));
        assert_eq!(add(PhysmapSpace::GMFN_FOREIGN, 0), Err(Errno::ENOSYS));
        assert_eq!(add(PhysmapSpace(3), 0), Err(Errno::EINVAL));
        assert_eq!(add(PhysmapSpace::SHARED_INFO, 0), Ok(()));
        assert!(guest.shared_info().is_some());
        let batch = |space| memory::add_to_physmap_batch(&guest, space, None, &[0], &[page], &mut [0]);
        assert_eq!(batch(PhysmapSpace(3)), Err(Errno::EOPNOTSUPP));
    }
}

#[test]
fn the_memory_map_is_cut_to_the_room_there_is() {
    let (_, _, guest, _trace) = machine();
    let mut ranges = [MemoryRange::default(); 2];
    assert_eq!(memory::memory_map(&guest, &mut ranges), Err(Errno::ENOSYS));
    let map = [(0, 0xA_0000, 1), (0x10_0000, 0x1_2345_6000, 1), (0xFEFF_8000, 0x8000, 2)];
    let map = map.map(|(start, size, kind)| MemoryRange { start, size, kind });
    guest.set_memory_map(&map);
    assert_eq!(memory::memory_map(&guest, &mut ranges), Ok(2));
    assert_eq!(ranges, map[..2]);
    let mut room = [MemoryRange::default(); 9];
    assert_eq!(memory::memory_map(&guest, &mut room), Ok(3));
    assert_eq!(room[..3], map);
}

#[test]
fn parameters_are_set_and_read_by_whom_xen_lets() {
    let (_, _, guest, _trace) = machine();
    guest.set_hvm_param(HvmParam::STORE_PFN, 77);
    assert_eq!(hvm::get_param(&guest, HvmParam::STORE_PFN), Ok(77));
    // SAFETY: Xen refuses it.
    let set = |param, value| unsafe { hvm::set_param_unchecked(&guest, param, value) };
    assert_eq!(set(HvmParam::STORE_PFN, 1), Err(Errno::EPERM));
    assert_eq!(hvm::set_param(&guest, HvmParam::CONSOLE_EVTCHN, 5), Ok(()));
    assert_eq!(hvm::get_param(&guest, HvmParam::CONSOLE_EVTCHN), Ok(5));
    // An I/O request server's page is none of the guest's business; PAE was, once; and the last is 38.
    for (index, errno) in [(32, Errno::EPERM), (4, Errno::EINVAL), (38, Errno::EPERM), (39, Errno::EINVAL)] {
        assert_eq!(hvm::get_param(&guest, HvmParam(index)), Err(errno));
        assert_eq!(set(HvmParam(index), 0), Err(errno));
    }
    guest.xen().advance(SECOND);
    assert_eq!(hvm::time(&guest), Ok(SECOND));
}

#[test]
fn xen_says_what_it_is_and_to_whom() {
    let (_, dom0, guest, _trace) = machine();
    assert_eq!(version::version(&guest), Ok((4, 17)));
    assert_eq!(version::extraversion(&guest).unwrap().as_str(), ".0-mock");
    assert_eq!(version::compile_info(&guest).unwrap().compiler.as_str(), "rustc");
    assert_eq!(version::changeset(&guest).unwrap().to_string(), "mock");
    assert!(version::capabilities(&guest).unwrap().as_str().contains("hvm-3.0-x86_64"));
    assert_eq!(version::page_size(&guest), Ok(4096));
    assert_eq!(version::command_line(&guest).unwrap().as_str(), "<denied>");
    assert_eq!(version::command_line(&dom0).unwrap().as_str(), "dom0=mock");
    assert_eq!(version::build_id(&guest), Err(Errno::EPERM));
    assert_eq!(version::build_id(&dom0).unwrap().to_string(), "6d6f636b206275696c64206964206f662058656e");
    assert_eq!(version::guest_handle(&guest).unwrap().to_string(), "00000000-0000-0000-0000-000000000001");
    let features = version::features(&guest).unwrap();
    assert!(features.contains(version::Features::HVM_CALLBACK_VECTOR | version::Features::NOT_DIRECT_MAPPED));
    assert!(!features.contains(version::Features::DOM0));
    assert!(version::features(&dom0).unwrap().contains(version::Features::DOM0));
}

#[test]
fn texts_are_whole_where_xen_has_the_calls_for_it() {
    let (xen, dom0, guest, _trace) = machine();
    // Xen 4.17 has only the older calls.
    let changeset = version::long_text::<4>(&guest, LongText::Changeset);
    assert_eq!(changeset.unwrap().as_str(), "mock");
    assert_eq!(version::long_text::<3>(&guest, LongText::Changeset), Err(Errno::ENOBUFS));
    assert_eq!(version::long_text::<9>(&guest, LongText::Extraversion).unwrap().as_str(), ".0-mock");
    let capabilities = version::long_text::<2048>(&guest, LongText::Capabilities).unwrap();
    assert_eq!(capabilities.as_str(), version::capabilities(&guest).unwrap().as_str());
    assert_eq!(version::long_text::<64>(&dom0, LongText::CommandLine).unwrap().as_str(), "dom0=mock");

    // A newer one: length and text of a `xen_varbuf`, without a zero at the end.
    const LONG: &[u8; 100] = &[b'x'; 100];
    xen.register(HypercallNr::XEN_VERSION, |_, [command, pointer, ..]| {
        if !(11..=14).contains(&command) {
            return Errno::ENOSYS.as_return();
        }
        if command == 14 {
            return Errno::EPERM.as_return();
        }
        let pointer = core::ptr::with_exposed_provenance_mut::<u8>(pointer);
        // SAFETY: the caller's structure begins with its length, and so many bytes follow.
        unsafe {
            if (pointer.cast::<u32>().read_unaligned() as usize) < LONG.len() {
                return Errno::ENOBUFS.as_return();
            }
            pointer.add(4).copy_from_nonoverlapping(LONG.as_ptr(), LONG.len());
        }
        LONG.len() as isize
    });
    for text in [LongText::Extraversion, LongText::Capabilities, LongText::Changeset] {
        assert_eq!(version::long_text::<100>(&guest, text).unwrap().as_str().as_bytes(), LONG);
        assert_eq!(version::long_text::<101>(&guest, text).unwrap().as_str().as_bytes(), LONG);
        assert_eq!(version::long_text::<99>(&guest, text), Err(Errno::ENOBUFS));
    }
    assert_eq!(version::long_text::<100>(&guest, LongText::CommandLine), Err(Errno::EPERM));
}

#[test]
fn the_rest() {
    let (_, dom0, guest, _trace) = machine();
    assist::enable(&guest, Assist::RUNSTATE_UPDATE_FLAG).unwrap();
    assert!(guest.assists(Assist::RUNSTATE_UPDATE_FLAG));
    assist::disable(&guest, Assist::RUNSTATE_UPDATE_FLAG).unwrap();
    assert!(!guest.assists(Assist::RUNSTATE_UPDATE_FLAG));
    for assist in [Assist::WRITABLE_PAGETABLES, Assist::M2P_STRICT, Assist(64), Assist(usize::MAX)] {
        assert_eq!(assist::enable(&guest, assist), Err(Errno::EINVAL), "not for this kind of guest");
    }
    console_io::write(&guest, b"hello ").unwrap();
    console_io::write(&guest, b"Xen").unwrap();
    assert_eq!(guest.console_output(), b"hello Xen");
    assert_eq!(console_io::read(&guest, &mut [0; 4]), Err(Errno::EPERM));
    assert_eq!(console_io::read(&dom0, &mut [0; 4]), Ok(0));
    assert_eq!(physdev::eoi(&guest, 1), Err(Errno::ENOSYS));
    assert_eq!(hvm::flush_tlbs(&guest), Ok(()));
    assert_eq!(hvm::guest_request_vm_event(&guest), Ok(()));
}

#[test]
fn a_reset_begins_anew_while_ports_are_opened_behind_it() {
    let resets = |outcomes: &'static [Errno]| {
        let xen = MockXen::new();
        let guest = xen.domain(DomId(1));
        let mut left = outcomes.iter().copied();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        xen.register(HypercallNr::EVENT_CHANNEL_OP, move |_, _| {
            counted.fetch_add(1, Relaxed);
            left.next().map_or(0, Errno::as_return)
        });
        (event::reset(&guest), calls.load(Relaxed))
    };
    assert_eq!(resets(&[]), (Ok(()), 1));
    assert_eq!(resets(&[Errno::EAGAIN; 3]), (Ok(()), 4));
    assert_eq!(resets(&[Errno::EAGAIN, Errno::EBUSY]), (Err(Errno::EBUSY), 2));
    // Whoever never stops opening ports does not hold the caller for ever.
    assert_eq!(resets(&[Errno::EAGAIN; 1000]), (Err(Errno::EAGAIN), 16));
}
