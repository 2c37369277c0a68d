//! The guest, and the terminal that it is connected to.

use core::fmt::Write as _;
use std::error::Error;
use std::io::{BufRead, Write};

use xen_console::mock::{MockConsoled, guest};
use xen_console::{Console, Line, LineReader};
use xen_hypercall::mock::MockXen;
use xen_hypercall::{DomId, Platform};

/// Types what `input` has, and shows what the guest writes.
pub(crate) fn run(mut input: impl BufRead, output: &mut impl Write) -> Result<(), Box<dyn Error>> {
    // A machine with one guest, and a daemon for its console, which is the part of `xl console` here.
    let xen = MockXen::new();
    xen_evtchn::mock::install(&xen);
    let (guest, events) = guest(&xen, DomId(1));
    let daemon = MockConsoled::connect(&xen, &guest);

    let mut console = Console::new(&events)?;
    let mut lines = LineReader::<80>::new();
    write!(console, "This is a guest. It answers each line; Ctrl-D ends it.\n> ")?;
    let mut typed = Vec::new();
    loop {
        // Once the daemon has nothing to do and the guest neither, it is the terminal's turn.
        while xen.step() || serve(&mut console, &mut lines)? {}
        // A terminal in the raw mode of `xl console` needs the carriage returns; this one does not.
        let shown: Vec<u8> = daemon.take_output().into_iter().filter(|byte| *byte != b'\r').collect();
        output.write_all(&shown)?;
        output.flush()?;
        typed.clear();
        if input.read_until(b'\n', &mut typed)? == 0 {
            writeln!(output)?;
            return Ok(());
        }
        daemon.type_in(&typed);
    }
}

/// The guest's part: handles what was typed. Returns whether that was anything.
fn serve<P: Platform>(
    console: &mut Console<'_, P>,
    lines: &mut LineReader<80>,
) -> Result<bool, Box<dyn Error>> {
    let mut bytes = [0; 64];
    let count = console.read(&mut bytes)?;
    for byte in &bytes[..count] {
        if let Line::Complete(line) = lines.push(*byte) {
            write!(console, "you said: {line}\n> ")?;
        }
    }
    Ok(count > 0)
}
