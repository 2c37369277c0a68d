//! Log lines, to the console.

use log::{Log, Metadata, Record};
use xen_console::log::LogLine;

use crate::{console, machine};

struct Logger;

static LOGGER: Logger = Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        console::print(format_args!("{}\n", LogLine::new(machine::now(), record)));
    }

    fn flush(&self) {}
}

/// Makes it the logger of this kernel, for lines from `Info` on.
pub(crate) fn install() {
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(log::LevelFilter::Info);
}
