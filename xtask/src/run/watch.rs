//! A guest's console on this terminal, until the guest ends.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::dom0::{Dom0, Follow};
use crate::guest::{Guest, Listed, PATIENCE};
use crate::xen_log;

/// How often the guest is looked for.
const LOOK: Duration = Duration::from_secs(2);

/// Shows a guest's console.
pub(super) struct Watch<'d> {
    dom0: &'d Dom0,
    guest: Guest<'d>,
    /// Its name for people.
    who: &'static str,
    console: Follow,
    shown: usize,
    looked: Instant,
    id: Option<u32>,
}

impl<'d> Watch<'d> {
    pub(super) fn new(dom0: &'d Dom0, guest: Guest<'d>, who: &'static str) -> Result<Self> {
        let console = guest.console()?;
        let id = guest.list()?.map(|listed| listed.id);
        Ok(Self { dom0, guest, who, console, shown: 0, looked: Instant::now(), id })
    }

    /// Shows what the guest says within a moment. Returns how it ended, once it has.
    pub(super) fn step(&mut self) -> Result<Option<ExitCode>> {
        self.show(Duration::from_millis(200));
        if self.looked.elapsed() < LOOK {
            return Ok(None);
        }
        self.looked = Instant::now();
        let listed = self.guest.list()?;
        if let Some(listed) = listed.as_ref().filter(|listed| !listed.ended()) {
            self.id = Some(listed.id);
            return Ok(None);
        }
        self.show(Duration::from_millis(500));
        let crashed = listed.as_ref().is_some_and(Listed::crashed);
        if crashed || self.shown == 0 {
            self.show_log()?;
        }
        if crashed {
            bail!("{} has crashed; what it said is above", self.who);
        }
        println!("The guest has ended.");
        Ok(Some(ExitCode::SUCCESS))
    }

    /// Shows what comes within `wait`.
    pub(super) fn show(&mut self, wait: Duration) {
        // The console of a guest that is gone has nothing more to say.
        let _ = self.console.read_more(wait);
        let text = self.console.text();
        if let Some(new) = text.get(self.shown..) {
            print!("{}", new.replace('\r', ""));
            self.shown = text.len();
        }
        let _ = std::io::stdout().flush();
    }

    /// Shows what Xen's log has of the guest: what it said before it had a console, and why Xen ended it.
    fn show_log(&self) -> Result<()> {
        let Some(id) = self.id else { return Ok(()) };
        let log = self.dom0.run("xl dmesg", PATIENCE)?;
        let lines: Vec<&str> = log.lines().filter(|line| xen_log::is_of(line, id)).collect();
        if !lines.is_empty() {
            println!("--- Xen's log\n{}", lines.join("\n"));
        }
        let said = xen_log::said(lines);
        if !said.is_empty() {
            println!("--- what the guest said there\n{said}");
        }
        Ok(())
    }
}
