//! Where words go: log lines and the console, and last words when nothing else works.

use core::fmt::{self, Write};
use core::time::Duration;

use log::{Log, Metadata, Record};
use xen_console::Console;
use xen_console::log::LogLine;
use xen_evtchn::EventChannels;
use xen_hypercall::version::Features;
use xen_hypercall::{Wait, console_io};

use crate::arch;
use crate::platform::{Kernel, Local};

static CONSOLE: Local<Option<Console<'static, &'static Kernel>>> = Local::new(None);
static KERNEL: Local<Option<&'static Kernel>> = Local::new(None);

/// A console that nobody reads holds a line up this long, and only the first one.
const PATIENCE: Duration = Duration::from_millis(200);

/// What is in the console when the domain ends is lost, so its reader gets more time for that.
const LAST: Duration = Duration::from_secs(10);

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let now = KERNEL.with(|kernel| kernel.map(Wait::now)).flatten().unwrap_or_default();
        let line = LogLine::new(now, record);
        if write(format_args!("{line}\n"), PATIENCE).is_none() {
            let _ = write!(Early, "{line}\r\n");
        }
    }

    fn flush(&self) {}
}

pub(crate) fn init_log() {
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Info);
}

pub(crate) fn set_clock(kernel: &'static Kernel) {
    KERNEL.with(|clock| *clock = Some(kernel));
}

/// Opens the console that the toolstack gave us, if it did.
pub(crate) fn open(events: &'static EventChannels<&'static Kernel>) {
    match Console::new(events) {
        Ok(console) => {
            CONSOLE.with(|place| *place = Some(console));
        }
        Err(error) => log::info!("{error}; log lines go to Xen's log"),
    }
}

/// Writes text to the console, its line ends made for a terminal, and waits for room for so long. Returns whether all of
/// it was written; none when there is no console, or it is in use at this moment.
pub(crate) fn write(text: fmt::Arguments<'_>, patience: Duration) -> Option<bool> {
    CONSOLE.with(|console| console.as_mut()?.write_text(text, patience).ok()).flatten()
}

/// Writes text to the console, its line ends made for a terminal.
pub(crate) fn write_text(text: &str) {
    write(format_args!("{text}"), PATIENCE);
}

pub(crate) fn read(buf: &mut [u8]) -> usize {
    CONSOLE.with(|console| console.as_mut()?.read(buf).ok()).flatten().unwrap_or(0)
}

pub(crate) fn stats() -> xen_console::Stats {
    CONSOLE.with(|console| console.as_ref().map(Console::stats)).flatten().unwrap_or_default()
}

/// Waits until the console's reader has everything, or has had the time for it.
pub(crate) fn drain() {
    CONSOLE.with(|console| console.as_mut().map(|console| console.drain(LAST)));
}

/// What works before anything else does: Xen's console, which a release build of Xen shows for the first domain
/// alone, or Xen's log by its port, which it shows for all others.
fn early(bytes: &[u8]) {
    let call = arch::call();
    let features = call.and_then(|call| xen_hypercall::version::features(&call).ok());
    match call.filter(|_| features.is_some_and(|features| features.contains(Features::DOM0))) {
        Some(call) => drop(console_io::write(&call, bytes)),
        None => bytes.iter().for_each(|byte| arch::early_byte(*byte)),
    }
}

struct Early;

impl Write for Early {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        early(text.as_bytes());
        Ok(())
    }
}

/// Says why it all ends, wherever it can be heard.
pub(crate) fn last_words(why: fmt::Arguments<'_>) {
    let name = env!("CARGO_PKG_NAME");
    let _ = write!(Early, "{name}: {why}\r\n");
    struct Last<'c>(&'c mut Console<'static, &'static Kernel>);
    impl Write for Last<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.emergency(text.as_bytes());
            Ok(())
        }
    }
    CONSOLE.with(|console| {
        if let Some(console) = console {
            let _ = write!(Last(console), "{name}: {why}\r\n");
        }
    });
}
