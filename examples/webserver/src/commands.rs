//! Lines typed on the console.

use crate::{App, Machine, Request};

const HELP: &str = "help      this text\n\
                    stats     everything the status page shows\n\
                    net       the network card, its addresses and the web server\n\
                    disk      the disk and its file system\n\
                    poweroff  stop in good order\n";

impl<M: Machine> App<M> {
    pub(super) fn command(&mut self, line: &str) -> Option<Request> {
        match line {
            "" => {}
            "help" | "?" => self.machine.console_write(HELP),
            "stats" => self.print(&[]),
            "net" => self.print(&["Network", "Web server"]),
            "disk" => self.print(&["Disk", "Files"]),
            "poweroff" => return Some(Request::PowerOff),
            _ => self.machine.console_write("unknown command; type help\n"),
        }
        None
    }
}
