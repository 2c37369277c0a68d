//! `sched.h`

pub const SCHEDOP_YIELD: usize = 0;
pub const SCHEDOP_BLOCK: usize = 1;
pub const SCHEDOP_SHUTDOWN: usize = 2;
pub const SCHEDOP_POLL: usize = 3;
pub const SCHEDOP_REMOTE_SHUTDOWN: usize = 4;
pub const SCHEDOP_SHUTDOWN_CODE: usize = 5;
pub const SCHEDOP_WATCHDOG: usize = 6;
pub const SCHEDOP_PIN_OVERRIDE: usize = 7;

pub const SHUTDOWN_POWEROFF: u32 = 0;
pub const SHUTDOWN_REBOOT: u32 = 1;
pub const SHUTDOWN_SUSPEND: u32 = 2;
pub const SHUTDOWN_CRASH: u32 = 3;
pub const SHUTDOWN_WATCHDOG: u32 = 4;
pub const SHUTDOWN_SOFT_RESET: u32 = 5;

wire! {
    SchedShutdown = 4 { reason: u32, }
    SchedPoll = 24 { ports: u64, nr_ports: u32, pad0: u32, timeout: u64, }
    SchedRemoteShutdown = 8 { domain_id: u16, pad0: u16, reason: u32, }
    SchedWatchdog = 8 { id: u32, timeout: u32, }
    SchedPinOverride = 4 { pcpu: i32, }
}
