//! `event_channel.h`

pub const EVTCHNOP_BIND_INTERDOMAIN: usize = 0;
pub const EVTCHNOP_BIND_VIRQ: usize = 1;
pub const EVTCHNOP_BIND_PIRQ: usize = 2;
pub const EVTCHNOP_CLOSE: usize = 3;
pub const EVTCHNOP_SEND: usize = 4;
pub const EVTCHNOP_STATUS: usize = 5;
pub const EVTCHNOP_ALLOC_UNBOUND: usize = 6;
pub const EVTCHNOP_BIND_IPI: usize = 7;
pub const EVTCHNOP_BIND_VCPU: usize = 8;
pub const EVTCHNOP_UNMASK: usize = 9;
pub const EVTCHNOP_RESET: usize = 10;
pub const EVTCHNOP_INIT_CONTROL: usize = 11;
pub const EVTCHNOP_EXPAND_ARRAY: usize = 12;
pub const EVTCHNOP_SET_PRIORITY: usize = 13;
/// The interrupt's line is shared with other domains (`BIND_PIRQ__WILL_SHARE`).
pub const BIND_PIRQ_WILL_SHARE: u32 = 1;
pub const EVTCHNSTAT_CLOSED: u32 = 0;
pub const EVTCHNSTAT_UNBOUND: u32 = 1;
pub const EVTCHNSTAT_INTERDOMAIN: u32 = 2;
pub const EVTCHNSTAT_PIRQ: u32 = 3;
pub const EVTCHNSTAT_VIRQ: u32 = 4;
pub const EVTCHNSTAT_IPI: u32 = 5;

wire! {
    EvtchnAllocUnbound = 8 { dom: u16, remote_dom: u16, port: u32, }
    EvtchnBindInterdomain = 12 { remote_dom: u16, pad0: u16, remote_port: u32, local_port: u32, }
    EvtchnBindVirq = 12 { virq: u32, vcpu: u32, port: u32, }
    EvtchnBindPirq = 12 { pirq: u32, flags: u32, port: u32, }
    EvtchnBindIpi = 8 { vcpu: u32, port: u32, }
    EvtchnClose = 4 { port: u32, }
    EvtchnSend = 4 { port: u32, }
    EvtchnStatus = 24 { dom: u16, pad0: u16, port: u32, status: u32, vcpu: u32, remote_dom: u16, pad1: u16, remote_port: u32, }
    EvtchnBindVcpu = 8 { port: u32, vcpu: u32, }
    EvtchnUnmask = 4 { port: u32, }
    EvtchnReset = 2 { dom: u16, }
    EvtchnInitControl = 24 { control_gfn: u64, offset: u32, vcpu: u32, link_bits: u8, pad0: [u8; 7], }
    EvtchnExpandArray = 8 { array_gfn: u64, }
    EvtchnSetPriority = 8 { port: u32, priority: u32, }
}
