//! Where words go: the console of the mock, as the unikernel's go to that of Xen.

use std::cell::RefCell;
use std::time::Duration;

use log::{Log, Metadata, Record};
use xen_console::log::LogLine;
use xen_console::{Console, Stats};
use xen_evtchn::EventChannels;
use xen_hypercall::Wait;

use crate::platform::Kernel;

thread_local! {
    static CONSOLE: RefCell<Option<Console<'static, &'static Kernel>>> = const { RefCell::new(None) };
    static KERNEL: RefCell<Option<&'static Kernel>> = const { RefCell::new(None) };
}

/// A console that nobody reads holds a line up this long, and only the first one.
const PATIENCE: Duration = Duration::from_millis(200);

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // The libraries that carry the mock's world (mio and the like) log as well, beside the guest.
        let now = KERNEL.with_borrow(|kernel| kernel.map(Wait::now)).unwrap_or_default();
        let line = LogLine::new(now, record);
        if with(|console| console.write_text(format_args!("{line}\n"), PATIENCE).is_ok()) != Some(true) {
            eprintln!("{} {}", record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

pub(crate) fn init_log() {
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Info);
}

pub(crate) fn set_clock(kernel: &'static Kernel) {
    KERNEL.set(Some(kernel));
}

pub(crate) fn open(events: &'static EventChannels<&'static Kernel>) {
    match Console::new(events) {
        Ok(console) => CONSOLE.set(Some(console)),
        Err(error) => log::error!("{error}"),
    }
}

/// Runs `f` on the console; none when there is none, or when a line is being written to it at this moment.
fn with<R>(f: impl FnOnce(&mut Console<'static, &'static Kernel>) -> R) -> Option<R> {
    CONSOLE.with(|console| console.try_borrow_mut().ok()?.as_mut().map(f))
}

pub(crate) fn write_text(text: &str) {
    with(|console| console.write_text(format_args!("{text}"), PATIENCE).is_ok());
}

pub(crate) fn read(buf: &mut [u8]) -> usize {
    with(|console| console.read(buf).ok()).flatten().unwrap_or(0)
}

pub(crate) fn stats() -> Stats {
    with(|console| console.stats()).unwrap_or_default()
}

/// Waits until the console's reader has everything.
pub(crate) fn drain() {
    with(|console| console.drain(Duration::from_secs(1)));
}
