//! The console that the toolstack gave the domain; Xen's log where there is none.

use core::fmt::{self, Write};
use core::time::Duration;

use xen_console::{Console, Stats};
use xen_evtchn::EventChannels;

use crate::entry;
use crate::lock::Lock;
use crate::machine::{self, Kernel};

static CONSOLE: Lock<Option<Console<'static, &'static Kernel>>> = Lock::new(None);

/// What every kernel may do with a console, once one is open. An image that opens none does not hold what does it.
trait Screen: Sync {
    fn write(&self, text: fmt::Arguments<'_>, patience: Duration) -> Option<bool>;
    fn drain(&self);
    fn last_words(&self, text: fmt::Arguments<'_>);
}

static SCREEN: Lock<Option<&'static dyn Screen>> = Lock::new(None);

fn screen() -> Option<&'static dyn Screen> {
    SCREEN.with(|screen| *screen).flatten()
}

struct Open;

impl Screen for Open {
    fn write(&self, text: fmt::Arguments<'_>, patience: Duration) -> Option<bool> {
        CONSOLE.with(|console| console.as_mut()?.write_text(text, patience).ok()).flatten()
    }

    fn drain(&self) {
        CONSOLE.with(|console| console.as_mut().map(|console| console.drain(LAST)));
    }

    fn last_words(&self, text: fmt::Arguments<'_>) {
        struct Last<'c>(&'c mut Console<'static, &'static Kernel>);
        impl Write for Last<'_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0.emergency(text.as_bytes());
                Ok(())
            }
        }
        CONSOLE.with(|console| console.as_mut().map(|console| Last(console).write_fmt(text)));
    }
}

/// A console that nobody reads holds a line up this long, and only the first one. Where tasks run, it holds up none.
fn patience() -> Duration {
    #[cfg(feature = "embassy")]
    if machine::heart().is_some() {
        return Duration::ZERO;
    }
    Duration::from_millis(200)
}

/// What is in the console when the domain ends is lost, so its reader gets more time for that.
const LAST: Duration = Duration::from_secs(10);

/// Opens the console on the kernel's event channels. [`Boot::open`](crate::Boot::open) and [`Boot::with`](crate::Boot::with)
/// do so. Returns whether there is one.
pub fn open(events: &'static EventChannels<&'static Kernel>) -> bool {
    let opened = Console::new(events);
    match opened {
        Ok(console) => {
            CONSOLE.with(|place| *place = Some(console));
            SCREEN.with(|screen| *screen = Some(&Open)).is_some()
        }
        Err(error) => {
            let _ = writeln!(Early, "{error}; lines go to Xen's log");
            false
        }
    }
}

/// Writes text to the console, its line ends made for a terminal, and waits for room for so long. Returns whether all of
/// it was written; none when there is no console, or it is in use at this moment.
pub fn write(text: fmt::Arguments<'_>, patience: Duration) -> Option<bool> {
    screen()?.write(text, patience)
}

/// Writes text to the console as [`write()`] does, waiting for room 200 ms at most, or not at all where an executor runs (feature
/// `embassy`); without a console it is lost.
pub fn write_text(text: &str) {
    write(format_args!("{text}"), patience());
}

/// Writes text to the console as [`write()`] does, waiting for room 200 ms at most, or not at all where an executor runs (feature
/// `embassy`); without a console, to Xen's log.
pub fn print(text: fmt::Arguments<'_>) {
    if write(text, patience()).is_none() {
        let _ = Early.write_fmt(text);
    }
}

/// Takes bytes that were typed. Does not wait; returns how many there were.
pub fn read(buf: &mut [u8]) -> usize {
    CONSOLE.with(|console| console.as_mut()?.read(buf).ok()).flatten().unwrap_or(0)
}

/// The console for tasks, which wait for it without holding up others. What each does when it is dropped is as
/// [`SharedConsole`](xen_console::SharedConsole) says.
pub mod task {
    use core::future::poll_fn;
    use core::task::Poll;

    use xen_console::{Console, Error};

    use super::{CONSOLE, Kernel};

    /// Reads what was typed, or waits until there is something. Returns how many bytes were read.
    ///
    /// # Errors
    /// [`Error::NoConsole`], or as [`Console::read`].
    pub async fn read(buf: &mut [u8]) -> Result<usize, Error> {
        poll_fn(|cx| with(|console| console.poll_read(cx, buf))).await
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// [`Error::NoConsole`], or as [`Console::write`].
    pub async fn write_all(data: &[u8]) -> Result<(), Error> {
        let mut rest = data;
        poll_fn(|cx| with(|console| console.poll_write_all(cx, &mut rest))).await
    }

    /// Writes text, its line ends made for a terminal, of which no line is lost.
    ///
    /// # Errors
    /// [`Error::NoConsole`], or as [`Console::write`].
    pub async fn write_text(text: &str) -> Result<(), Error> {
        let mut rest = text;
        poll_fn(|cx| with(|console| console.poll_text(cx, &mut rest))).await
    }

    /// Waits until the console's reader has everything.
    ///
    /// # Errors
    /// [`Error::NoConsole`], or as [`Console::poll_drained`].
    pub async fn flush() -> Result<(), Error> {
        poll_fn(|cx| with(|console| console.poll_drained(cx))).await
    }

    fn with<R>(
        f: impl FnOnce(&mut Console<'static, &'static Kernel>) -> Poll<Result<R, Error>>,
    ) -> Poll<Result<R, Error>> {
        let done = CONSOLE.with(|console| console.as_mut().map(f)).flatten();
        done.unwrap_or(Poll::Ready(Err(Error::NoConsole)))
    }
}

/// The console's figures; zero without a console.
pub fn stats() -> Stats {
    CONSOLE.with(|console| console.as_ref().map(Console::stats)).flatten().unwrap_or_default()
}

/// The console among the parts of the kernel that are set up again after a resume. None: it is in use further up on the stack.
#[cfg(feature = "suspend")]
pub(crate) fn with_part<R>(f: impl FnOnce(&mut Option<Console<'static, &'static Kernel>>) -> R) -> Option<R> {
    CONSOLE.with(f)
}

/// Waits until the console's reader has everything, or has had ten seconds for it.
pub fn drain() {
    if let Some(screen) = screen() {
        screen.drain();
    }
}

/// Writes text to Xen's log, where it can be read by who may read that: `xl dmesg`. Works before anything is open. Text of the
/// first domain, and of those that Xen makes as it boots, goes to Xen's own console.
pub fn early(text: fmt::Arguments<'_>) {
    let _ = Early.write_fmt(text);
}

/// Xen's log, for what has no console. Works before anything else does.
pub(crate) struct Early;

impl Write for Early {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        machine::early(text.as_bytes());
        Ok(())
    }
}

/// Says why it all ends, wherever it can be heard.
pub(crate) fn last_words(why: fmt::Arguments<'_>) {
    let (name, screen) = (entry::name(), screen());
    // A process has one place for both.
    if !(cfg!(feature = "hosted") && screen.is_some()) {
        let _ = writeln!(Early, "{name}: {why}");
    }
    if let Some(screen) = screen {
        screen.last_words(format_args!("{name}: {why}\r\n"));
    }
}

/// Prints text on the console.
#[macro_export]
macro_rules! print {
    ($($text:tt)*) => {
        $crate::console::print(::core::format_args!($($text)*))
    };
}

/// Prints a line on the console.
#[macro_export]
macro_rules! println {
    () => {
        $crate::console::print(::core::format_args!("\n"))
    };
    ($($text:tt)*) => {
        $crate::console::print(::core::format_args!("{}\n", ::core::format_args!($($text)*)))
    };
}
