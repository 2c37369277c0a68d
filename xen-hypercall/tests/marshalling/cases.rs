//! Each typed call with what it is to hand over.

use core::ptr::NonNull;
use core::time::Duration;

use xen_hypercall::abi::*;
use xen_hypercall::assist::{self, Assist};
use xen_hypercall::mock::MockDomain;
use xen_hypercall::multicall::Multicall;
use xen_hypercall::{DomId, Errno, Gfn, HypercallNr as Nr, VcpuId};
use xen_hypercall::{console_io, event, grant, hvm, memory, physdev, sched, vcpu, version};
use zerocopy::{Immutable, IntoBytes};

const SELF: u16 = 0x7FF0;
const SECOND: Duration = Duration::from_secs(1);

/// What an argument is expected to be.
#[derive(Clone, Copy)]
pub(crate) enum Arg {
    Is(usize),
    /// The address of the structure.
    Structure,
    /// Some other address.
    Address,
}

use Arg::{Address, Is, Structure};

pub(crate) struct Case {
    pub(crate) what: &'static str,
    pub(crate) call: fn(&MockDomain) -> Result<(), Errno>,
    pub(crate) nr: Nr,
    pub(crate) args: [Arg; 5],
    pub(crate) structure: Vec<u8>,
    /// Bytes of the structure that are an address, and so another each time.
    pub(crate) addresses: Vec<usize>,
}

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = Case> {
    let all = [
        event_channels(),
        grants(),
        scheduling(),
        vcpus(),
        memory_layout(),
        hvm_parameters(),
        versions(),
        others(),
    ];
    all.into_iter().flatten()
}

fn case(what: &'static str, nr: Nr, args: &[Arg], call: fn(&MockDomain) -> Result<(), Errno>) -> Case {
    let mut all = [Is(0); 5];
    all[..args.len()].copy_from_slice(args);
    Case { what, call, nr, args: all, structure: Vec::new(), addresses: Vec::new() }
}

/// A command of the usual form with its structure.
fn with<T: IntoBytes + Immutable>(
    what: &'static str,
    nr: Nr,
    command: usize,
    structure: T,
    call: fn(&MockDomain) -> Result<(), Errno>,
) -> Case {
    case(what, nr, &[Is(command), Structure], call).holding(structure)
}

impl Case {
    fn holding(self, structure: impl IntoBytes + Immutable) -> Self {
        Self { structure: structure.as_bytes().to_vec(), ..self }
    }

    fn args(mut self, args: &[Arg]) -> Self {
        self.args[..args.len()].copy_from_slice(args);
        self
    }

    /// At these offsets are addresses of 8 bytes.
    fn addresses(self, at: &[usize]) -> Self {
        Self { addresses: at.to_vec(), ..self }
    }
}

fn event_channels() -> Vec<Case> {
    let nr = Nr::EVENT_CHANNEL_OP;
    vec![
        with(
            "bind_interdomain",
            nr,
            0,
            EvtchnBindInterdomain { remote_dom: 7, pad0: 0, remote_port: 9, local_port: 0 },
            |x| event::bind_interdomain(x, DomId(7), 9).map(drop),
        ),
        with("bind_virq", nr, 1, EvtchnBindVirq { virq: 3, vcpu: 2, port: 0 }, |x| {
            event::bind_virq(x, 3, VcpuId(2)).map(drop)
        }),
        with("bind_pirq", nr, 2, EvtchnBindPirq { pirq: 11, flags: 1, port: 0 }, |x| {
            event::bind_pirq(x, 11, true).map(drop)
        }),
        with("close", nr, 3, EvtchnClose { port: 5 }, |x| event::close(x, 5)),
        with("send", nr, 4, EvtchnSend { port: 6 }, |x| event::send(x, 6)),
        with("status", nr, 5, EvtchnStatus { dom: SELF, port: 8, ..Default::default() }, |x| {
            event::status(x, 8).map(drop)
        }),
        with("alloc_unbound", nr, 6, EvtchnAllocUnbound { dom: SELF, remote_dom: 3, port: 0 }, |x| {
            event::alloc_unbound(x, DomId(3)).map(drop)
        }),
        with("bind_ipi", nr, 7, EvtchnBindIpi { vcpu: 4, port: 0 }, |x| {
            event::bind_ipi(x, VcpuId(4)).map(drop)
        }),
        with("bind_vcpu", nr, 8, EvtchnBindVcpu { port: 4, vcpu: 1 }, |x| event::bind_vcpu(x, 4, VcpuId(1))),
        with("unmask", nr, 9, EvtchnUnmask { port: 12 }, |x| event::unmask(x, 12)),
        with("reset", nr, 10, EvtchnReset { dom: SELF }, |x| event::reset(x)),
        with(
            "init_control",
            nr,
            11,
            EvtchnInitControl { control_gfn: 0x123, offset: 8, vcpu: 2, link_bits: 0, pad0: [0; 7] },
            |x| unsafe { event::init_control(x, Gfn(0x123), 8, VcpuId(2)) }.map(drop),
        ),
        with("expand_array", nr, 12, EvtchnExpandArray { array_gfn: 0x456 }, |x| unsafe {
            event::expand_array(x, Gfn(0x456))
        }),
        with("set_priority", nr, 13, EvtchnSetPriority { port: 3, priority: 15 }, |x| {
            event::set_priority(x, 3, 15)
        }),
    ]
}

fn grants() -> Vec<Case> {
    let nr = Nr::GRANT_TABLE_OP;
    let one = [Address, Structure, Is(1)];
    let of = |command: usize| [Is(command), one[1], one[2]];
    vec![
        with("query_size", nr, 6, GnttabQuerySize { dom: SELF, ..Default::default() }, |x| {
            grant::query_size(x).map(drop)
        })
        .args(&of(6)),
        with("get_version", nr, 10, GnttabGetVersion { dom: SELF, ..Default::default() }, |x| {
            grant::get_version(x).map(drop)
        })
        .args(&of(10)),
        with("set_version", nr, 8, GnttabSetVersion { version: 2 }, |x| {
            unsafe { grant::set_version(x, 2) }.map(drop)
        })
        .args(&of(8)),
        with("setup_table", nr, 2, GnttabSetupTable { dom: SELF, nr_frames: 3, ..Default::default() }, |x| {
            grant::setup_table(x, &mut [Gfn(0); 3])
        })
        .args(&of(2))
        .addresses(&[16]),
        with(
            "status_frames",
            nr,
            9,
            GnttabGetStatusFrames { nr_frames: 2, dom: SELF, status: 0, frame_list: 0 },
            |x| grant::status_frames(x, &mut [Gfn(0); 2]),
        )
        .args(&of(9))
        .addresses(&[8]),
        with("swap", nr, 11, GnttabSwapGrantRef { ref_a: 9, ref_b: 10, ..Default::default() }, |x| unsafe {
            grant::swap(x, 9, 10)
        })
        .args(&of(11)),
        with(
            "flush_cache",
            nr,
            12,
            GnttabCacheFlush { address_or_reference: 0x5000, offset: 64, length: 128, op: 3 },
            |x| grant::flush_cache(x, 0x5000, 64, 128, grant::Cache::CleanInvalidate),
        )
        .args(&of(12)),
        with("copy", nr, 5, [GnttabCopy { len: 3, ..Default::default() }; 2], |x| unsafe {
            grant::copy(x, &mut [GnttabCopy { len: 3, ..Default::default() }; 2])
        })
        .args(&[Is(5), Structure, Is(2)]),
        with("map", nr, 0, GnttabMapGrantRef { host_addr: 4096, ..Default::default() }, |x| unsafe {
            grant::map(x, &mut [GnttabMapGrantRef { host_addr: 4096, ..Default::default() }])
        })
        .args(&[Is(0), Structure, Is(1)]),
        with("unmap", nr, 1, GnttabUnmapGrantRef { handle: 7, ..Default::default() }, |x| unsafe {
            grant::unmap(x, &mut [GnttabUnmapGrantRef { handle: 7, ..Default::default() }])
        })
        .args(&[Is(1), Structure, Is(1)]),
    ]
}

fn scheduling() -> Vec<Case> {
    let nr = Nr::SCHED_OP;
    vec![
        case("yield", nr, &[Is(0)], |x| sched::yield_now(x)),
        case("block", nr, &[Is(1)], |x| sched::block(x)),
        with("shutdown", nr, 2, SchedShutdown { reason: 3 }, |x| {
            sched::shutdown(x, sched::ShutdownReason::CRASH)
        }),
        with("suspend", nr, 2, SchedShutdown { reason: 2 }, |x| unsafe { sched::suspend(x) }.map(drop)),
        with("poll", nr, 3, SchedPoll { ports: 0, nr_ports: 2, pad0: 0, timeout: 1_000_000_000 }, |x| {
            sched::poll(x, &[1, 2], Some(SECOND))
        })
        .addresses(&[0]),
        with("poll, zero", nr, 3, SchedPoll { ports: 0, nr_ports: 0, pad0: 0, timeout: 1 }, |x| {
            sched::poll(x, &[], Some(Duration::ZERO))
        })
        .addresses(&[0]),
        with(
            "poll, ever",
            nr,
            3,
            SchedPoll { ports: 0, nr_ports: 0, pad0: 0, timeout: u64::MAX >> 1 },
            |x| sched::poll(x, &[], Some(Duration::MAX)),
        )
        .addresses(&[0]),
        with("poll, no deadline", nr, 3, SchedPoll { ports: 0, nr_ports: 1, pad0: 0, timeout: 0 }, |x| {
            sched::poll(x, &[1], None)
        })
        .addresses(&[0]),
        with("remote_shutdown", nr, 4, SchedRemoteShutdown { domain_id: 9, pad0: 0, reason: 1 }, |x| {
            sched::remote_shutdown(x, DomId(9), sched::ShutdownReason::REBOOT)
        }),
        with("set_shutdown_code", nr, 5, SchedShutdown { reason: 4 }, |x| {
            sched::set_shutdown_code(x, sched::ShutdownReason::WATCHDOG)
        }),
        with("shutdown_unchecked", nr, 2, SchedShutdown { reason: 5 }, |x| {
            unsafe { sched::shutdown_unchecked(x, sched::ShutdownCode::SOFT_RESET) }.map(drop)
        }),
        with("set_shutdown_code_unchecked", nr, 5, SchedShutdown { reason: 2 }, |x| unsafe {
            sched::set_shutdown_code_unchecked(x, sched::ShutdownCode::SUSPEND)
        }),
        with("start_watchdog", nr, 6, SchedWatchdog { id: 0, timeout: 2 }, |x| {
            sched::start_watchdog(x, Duration::from_millis(1001)).map(drop)
        }),
        with("start_watchdog, zero", nr, 6, SchedWatchdog { id: 0, timeout: 1 }, |x| {
            sched::start_watchdog(x, Duration::ZERO).map(drop)
        }),
        with("start_watchdog, ever", nr, 6, SchedWatchdog { id: 0, timeout: u32::MAX }, |x| {
            sched::start_watchdog(x, Duration::MAX).map(drop)
        }),
        with("pin_override", nr, 7, SchedPinOverride { pcpu: 3 }, |x| sched::pin_override(x, Some(3))),
        with("pin_override, none", nr, 7, SchedPinOverride { pcpu: -1 }, |x| sched::pin_override(x, None)),
    ]
}

fn vcpus() -> Vec<Case> {
    let nr = Nr::VCPU_OP;
    let of = |command| [Is(command), Is(3), Structure];
    let mut context = VcpuHvmContext { mode: 1, ..Default::default() };
    (context.cpu_regs[0], context.cpu_regs[13]) = (1, 14);
    vec![
        with("initialise", nr, 0, context, |x| unsafe {
            let registers = VcpuHvmX8664 { rax: 1, efer: 14, ..Default::default() };
            vcpu::initialise(x, VcpuId(3), &registers.into())
        })
        .args(&of(0)),
        case("up", nr, &[Is(1), Is(3)], |x| vcpu::up(x, VcpuId(3))),
        case("down", nr, &[Is(2), Is(3)], |x| vcpu::down(x, VcpuId(3))),
        case("is_up", nr, &[Is(3), Is(3)], |x| vcpu::is_up(x, VcpuId(3)).map(drop)),
        with("run_times", nr, 4, VcpuRunstateInfo::default(), |x| vcpu::run_times(x, VcpuId(3)).map(drop))
            .args(&of(4)),
        with("register_runstate_area", nr, 5, VcpuRegisterRunstateMemoryArea { addr: 0 }, |x| unsafe {
            vcpu::register_runstate_area(x, VcpuId(3), NonNull::dangling().as_ptr())
        })
        .args(&of(5))
        .addresses(&[0]),
        with("set_periodic_timer", nr, 6, VcpuSetPeriodicTimer { period_ns: 1_000_000_000 }, |x| {
            vcpu::set_periodic_timer(x, VcpuId(3), SECOND)
        })
        .args(&of(6)),
        case("stop_periodic_timer", nr, &[Is(7), Is(3)], |x| vcpu::stop_periodic_timer(x, VcpuId(3))),
        with(
            "set_singleshot_timer",
            nr,
            8,
            VcpuSetSingleshotTimer { timeout_abs_ns: 1_000_000_000, flags: 1, pad0: 0 },
            |x| vcpu::set_singleshot_timer(x, VcpuId(3), SECOND),
        )
        .args(&of(8)),
        case("stop_singleshot_timer", nr, &[Is(9), Is(3)], |x| vcpu::stop_singleshot_timer(x, VcpuId(3))),
        with(
            "register_vcpu_info",
            nr,
            10,
            VcpuRegisterVcpuInfo { mfn: 0x77, offset: 64, rsvd: 0 },
            |x| unsafe { vcpu::register_vcpu_info(x, VcpuId(3), Gfn(0x77), 64) },
        )
        .args(&of(10)),
        case("send_nmi", nr, &[Is(11), Is(3)], |x| vcpu::send_nmi(x, VcpuId(3))),
        with("physical_id", nr, 12, VcpuGetPhysid::default(), |x| vcpu::physical_id(x, VcpuId(3)).map(drop))
            .args(&of(12)),
        with(
            "register_runstate_page",
            nr,
            14,
            VcpuRegisterRunstateMemoryArea { addr: 0x12_3FD0 },
            |x| unsafe { vcpu::register_runstate_page(x, VcpuId(3), Some((Gfn(0x123), 0xFD0))) },
        )
        .args(&[Is(14), Is(3), Structure]),
        with(
            "register_runstate_page, none",
            nr,
            14,
            VcpuRegisterRunstateMemoryArea { addr: !0 },
            |x| unsafe { vcpu::register_runstate_page(x, VcpuId(3), None) },
        )
        .args(&[Is(14), Is(3), Structure]),
        with("register_time_page", nr, 15, VcpuRegisterTimeMemoryArea { addr: 0x12_3008 }, |x| unsafe {
            vcpu::register_time_page(x, VcpuId(2), Some((Gfn(0x123), 8)))
        })
        .args(&[Is(15), Is(2), Structure]),
        with("register_time_area", nr, 13, VcpuRegisterTimeMemoryArea { addr: 0 }, |x| unsafe {
            vcpu::register_time_area(x, VcpuId(3), NonNull::dangling())
        })
        .args(&of(13))
        .addresses(&[0]),
        case("set_timer", Nr::SET_TIMER_OP, &[Is(1_000_000_000)], |x| vcpu::set_timer(x, Some(SECOND))),
        case("set_timer, now", Nr::SET_TIMER_OP, &[Is(1)], |x| vcpu::set_timer(x, Some(Duration::ZERO))),
        case("set_timer, never", Nr::SET_TIMER_OP, &[Is(0)], |x| vcpu::set_timer(x, None)),
    ]
}

fn memory_layout() -> Vec<Case> {
    let nr = Nr::MEMORY_OP;
    let extents = XenMemoryReservation {
        extent_start: 0,
        nr_extents: 2,
        extent_order: 9,
        mem_flags: 0,
        domid: SELF,
        pad0: [0; 3],
    };
    vec![
        with("decrease_reservation", nr, 1, extents, |x| unsafe {
            memory::decrease_reservation(x, &[Gfn(1), Gfn(2)], 9).map(drop)
        })
        .addresses(&[0]),
        case("maximum_ram_page", nr, &[Is(2)], |x| memory::maximum_ram_page(x).map(drop)),
        with("current_reservation", nr, 3, XenMemoryDomain { domid: SELF }, |x| {
            memory::current_reservation(x, DomId::SELF).map(drop)
        }),
        with("maximum_reservation", nr, 4, XenMemoryDomain { domid: 5 }, |x| {
            memory::maximum_reservation(x, DomId(5)).map(drop)
        }),
        with("populate_physmap", nr, 6, XenMemoryReservation { mem_flags: 0x2_0320, ..extents }, |x| {
            let flags =
                memory::MemFlags::address_bits(32) | memory::MemFlags::node(2) | memory::MemFlags::EXACT_NODE;
            unsafe { memory::populate_physmap(x, &mut [Gfn(1), Gfn(2)], 9, flags) }.map(drop)
        })
        .addresses(&[0]),
        with(
            "add_to_physmap",
            nr,
            7,
            XenAddToPhysmap { domid: SELF, size: 0, space: 1, idx: 4, gpfn: 0x99 },
            |x| unsafe { memory::add_to_physmap(x, memory::PhysmapSpace::GRANT_TABLE, 4, Gfn(0x99)) },
        ),
        with("memory_map", nr, 9, XenMemoryMap { nr_entries: 4, pad0: 0, buffer: 0 }, |x| {
            memory::memory_map(x, &mut [memory::MemoryRange::default(); 4]).map(drop)
        })
        .addresses(&[8]),
        with("maximum_gpfn", nr, 14, XenMemoryDomain { domid: SELF }, |x| {
            memory::maximum_gpfn(x, DomId::SELF).map(drop)
        }),
        with(
            "remove_from_physmap",
            nr,
            15,
            XenRemoveFromPhysmap { domid: SELF, pad0: [0; 3], gpfn: 0x33 },
            |x| unsafe { memory::remove_from_physmap(x, Gfn(0x33)) },
        ),
        with(
            "add_to_physmap_batch",
            nr,
            23,
            XenAddToPhysmapBatch {
                domid: SELF,
                space: 4,
                size: 2,
                foreign_domid: 6,
                idxs: 0,
                gpfns: 0,
                errs: 0,
            },
            |x| {
                let (space, foreign) = (memory::PhysmapSpace::GMFN_FOREIGN, Some(DomId(6)));
                let (frames, mut results) = ([Gfn(1), Gfn(2)], [0; 2]);
                unsafe { memory::add_to_physmap_batch(x, space, foreign, &[3, 4], &frames, &mut results) }
            },
        )
        .addresses(&[8, 16, 24]),
    ]
}

fn hvm_parameters() -> Vec<Case> {
    let nr = Nr::HVM_OP;
    vec![
        with(
            "set_param",
            nr,
            0,
            XenHvmParam { domid: SELF, pad0: 0, index: 0, value: 2 << 56 | 0x20 },
            |x| hvm::set_param(x, hvm::HvmParam::CALLBACK_IRQ, hvm::callback_vector(hvm::Vector::FIRST)),
        ),
        with(
            "set_param_unchecked",
            nr,
            0,
            XenHvmParam { domid: SELF, pad0: 0, index: 34, value: 0x1000 },
            |x| unsafe { hvm::set_param_unchecked(x, hvm::HvmParam::VM_GENERATION_ID_ADDR, 0x1000) },
        ),
        with("get_param", nr, 1, XenHvmParam { domid: SELF, pad0: 0, index: 17, value: 0 }, |x| {
            hvm::get_param(x, hvm::HvmParam::CONSOLE_PFN).map(drop)
        }),
        case("flush_tlbs", nr, &[Is(5)], |x| hvm::flush_tlbs(x)),
        with("time", nr, 10, XenHvmGetTime::default(), |x| hvm::time(x).map(drop)),
        with(
            "mem_type",
            nr,
            15,
            XenHvmGetMemType { domid: SELF, mem_type: 0, pad: [0; 2], pfn: 0x55 },
            |x| hvm::mem_type(x, Gfn(0x55)).map(drop),
        ),
        with(
            "set_evtchn_upcall_vector",
            nr,
            23,
            XenHvmEvtchnUpcallVector { vcpu: 2, vector: 0x31, pad0: [0; 3] },
            |x| hvm::set_evtchn_upcall_vector(x, VcpuId(2), hvm::Vector::new(0x31).unwrap()),
        ),
        case("guest_request_vm_event", nr, &[Is(24)], |x| hvm::guest_request_vm_event(x)),
    ]
}

fn versions() -> Vec<Case> {
    let nr = Nr::XEN_VERSION;
    vec![
        case("version", nr, &[Is(0)], |x| version::version(x).map(drop)),
        with("extraversion", nr, 1, [0u8; 16], |x| version::extraversion(x).map(drop)),
        with("compile_info", nr, 2, [0u8; 144], |x| version::compile_info(x).map(drop)),
        with("capabilities", nr, 3, [0u8; 1024], |x| version::capabilities(x).map(drop)),
        with("changeset", nr, 4, [0u8; 64], |x| version::changeset(x).map(drop)),
        with("virt_start", nr, 5, [0u8; 8], |x| version::virt_start(x).map(drop)),
        with("features", nr, 6, XenFeatureInfo::default(), |x| version::features(x).map(drop)),
        case("page_size", nr, &[Is(7)], |x| version::page_size(x).map(drop)),
        with("guest_handle", nr, 8, [0u8; 16], |x| version::guest_handle(x).map(drop)),
        with("command_line", nr, 9, [0u8; 1024], |x| version::command_line(x).map(drop)),
        with("build_id", nr, 10, [60u32, 0], |x| version::build_id(x).map(drop)),
        with("long_text, extraversion", nr, 11, [40u32, 0], |x| {
            version::long_text::<40>(x, version::LongText::Extraversion).map(drop)
        }),
        with("long_text, capabilities", nr, 12, [2000u32, 0], |x| {
            version::long_text::<2000>(x, version::LongText::Capabilities).map(drop)
        }),
        with("long_text, changeset", nr, 13, [4u32, 0], |x| {
            version::long_text::<4>(x, version::LongText::Changeset).map(drop)
        }),
        with("long_text, command line", nr, 14, [60u32, 0], |x| {
            version::long_text::<60>(x, version::LongText::CommandLine).map(drop)
        }),
    ]
}

fn others() -> Vec<Case> {
    let msi = PhysdevMapPirq {
        domid: SELF,
        r#type: MAP_PIRQ_TYPE_MSI_SEG,
        index: -1,
        pirq: 44,
        bus: 0x8001_0003_u32 as i32,
        devfn: 0x19,
        entry_nr: 2,
        table_base: 0xFEB0_0000,
        ..Default::default()
    };
    let nr = Nr::PHYSDEV_OP;
    vec![
        case("console write", Nr::CONSOLE_IO, &[Is(0), Is(5), Structure], |x| console_io::write(x, b"hello"))
            .holding(*b"hello"),
        case("console read", Nr::CONSOLE_IO, &[Is(1), Is(8), Address], |x| {
            console_io::read(x, &mut [0; 8]).map(drop)
        }),
        case("assist on", Nr::VM_ASSIST, &[Is(0), Is(5)], |x| {
            assist::enable(x, Assist::RUNSTATE_UPDATE_FLAG)
        }),
        case("assist off", Nr::VM_ASSIST, &[Is(1), Is(32)], |x| assist::disable(x, Assist::M2P_STRICT)),
        case("multicall, empty", Nr::MULTICALL, &[Address, Is(0)], |x| {
            Multicall::<2>::new().run(x).map(drop)
        }),
        with("irq_status", nr, 5, PhysdevIrqStatusQuery { irq: 9, flags: 0 }, |x| {
            physdev::irq_status(x, 9).map(drop)
        }),
        with("eoi", nr, 12, PhysdevEoi { irq: 9 }, |x| physdev::eoi(x, 9)),
        with("map_pirq, message", nr, 13, msi, |x| {
            let source =
                physdev::Source::Msi { segment: 0x8001, bus: 3, devfn: 0x19, entry: 2, table: 0xFEB0_0000 };
            physdev::map_pirq(x, source, Some(44)).map(drop)
        }),
        with("unmap_pirq", nr, 14, PhysdevUnmapPirq { domid: SELF, pad0: 0, pirq: 44 }, |x| {
            physdev::unmap_pirq(x, 44)
        }),
        with("free_pirq", nr, 23, PhysdevGetFreePirq { r#type: 1, pirq: 0 }, |x| {
            physdev::free_pirq(x, physdev::Source::Gsi(4)).map(drop)
        }),
        with("set_eoi_page", nr, 28, PhysdevPirqEoiGmfn { gmfn: 0x88 }, |x| unsafe {
            physdev::set_eoi_page(x, Gfn(0x88))
        }),
    ]
}
