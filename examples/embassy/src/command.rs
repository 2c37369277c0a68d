//! Lines typed on the console.

use alloc::format;
use alloc::string::String;

use xen_console::{Line, LineReader};
use xen_hypercall::{Platform, Wait};

use crate::disk::{self, REQUESTS};
use crate::{Domain, Ending, Terminal, figures};

const HELP: &str = "help      this text\n\
                    stats     what was counted\n\
                    disk      reads a little of everywhere on the disk\n\
                    message   what data/message says\n\
                    poweroff  the end\n\
                    reboot    the end, and another beginning\n";

pub(crate) async fn run<P: Platform + Wait>(domain: &'static Domain<P>, terminal: &'static impl Terminal) {
    let (mut reader, mut bytes) = (LineReader::<80>::new(), [0; 16]);
    while let Ok(count) = terminal.read(&mut bytes).await {
        for byte in bytes.iter().take(count) {
            let text = match reader.push(*byte) {
                Line::Complete(line) => obey(domain, line).await,

                _ => continue,
            };
            // A console that does not work ends this task alone.
            if terminal.write_text(&text).await.is_err() {
                return;
            }
        }
    }
}

/// Does what a line says. Returns the answer.
async fn obey<P: Platform + Wait>(domain: &Domain<P>, line: &str) -> String {
    match line {
        "" => String::new(),
        "help" => HELP.into(),
        "stats" => {
            let mut text = String::new();
            let _ = figures::write(domain, &mut text);
            text
        }
        "disk" => match disk::read_all_over(domain).await {
            Ok(bytes) => format!("{bytes} bytes by {REQUESTS} requests at once\n"),
            Err(error) => format!("{error}\n"),
        },
        "message" => format!("{}\n", domain.message.borrow()),
        "poweroff" => {
            domain.ending.set(Some(Ending::PowerOff));
            "the end is near\n".into()
        }
        "reboot" => {
            domain.ending.set(Some(Ending::Reboot));
            "the end is near\n".into()
        }
        _ => "unknown; type help\n".into(),
    }
}
