//! The application: a web server for the files of a FAT disk.
//!
//! It knows a clock, a console, an optional network card and an optional disk, each behind a small
//! trait, and nothing of the machine below: the same code runs wherever the traits are implemented.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod absent;
mod announce;
pub mod clock;
mod commands;
pub mod config;
mod files;
mod gate;
mod http;
mod measure;
mod net;
pub mod report;
mod site;
mod slots;
mod transfer;

use alloc::string::String;
use core::time::Duration;

pub use absent::Absent;
use config::Config;
use report::{Console, Report};

/// What the world outside asks of the whole machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Stop and stay off.
    PowerOff,
    /// Stop and start again.
    Reboot,
    /// Be [suspended](Machine::suspend), and go on.
    Suspend,
}

/// What the application needs of the machine it runs on.
pub trait Machine {
    /// The network card; [`Absent`] in an image without one.
    type Nic: Nic;
    /// The disk; [`Absent`] in an image without one.
    type Disk: Disk;
    /// False for a machine that is never suspended: what a suspend needs is left out of the image.
    const SUSPENDS: bool = true;

    /// Time since an arbitrary start; never goes back.
    fn now(&self) -> Duration;
    /// Time since 1970-01-01 00:00 UTC.
    fn unix_time(&self) -> Duration;
    /// Begins a round: what happens from here on ends the next sleep, whoever takes notice of it first.
    fn begin(&mut self);
    /// Takes in what happened outside; says whether the machine is to stop.
    fn poll(&mut self) -> Option<Request>;
    /// A disk that has come since there was none, or since the last one was closed. Does not wait for one.
    fn disk(&mut self) -> Option<Self::Disk>;
    /// Returns when something may have happened outside since the round began, or at `deadline`.
    fn sleep(&mut self, deadline: Option<Duration>);
    /// Bytes typed on the console.
    fn console_read(&mut self, buf: &mut [u8]) -> usize;
    /// Writes an answer to the console.
    fn console_write(&mut self, text: &str);
    /// Tells what the machine is and how it does.
    fn report(&self, to: &mut dyn Report);
    /// Hands the machine to whoever asked for it, and returns when it goes on, here or elsewhere. Everything is as before, but
    /// that a device may be gone.
    fn suspend<N: Network<Self::Nic>>(&mut self, net: Option<&mut N>, disk: Option<&Self::Disk>);
}

/// What uses the card, while the machine is suspended.
pub trait Network<N> {
    /// The card.
    fn nic(&mut self) -> &mut N;
    /// Takes in what has arrived, and answers none of it: the last thing before the machine stops. What is taken in is answered by the
    /// machine when it goes on; what is not is asked again by the peer, the more rarely the longer the machine is away.
    fn take_in(&mut self, now: Duration);
}

/// A network card.
pub trait Nic: smoltcp::phy::Device {
    /// False for [`Absent`]: what would have used a card is left out of the image.
    const PRESENT: bool = true;
    /// Its hardware address.
    fn mac(&self) -> [u8; 6];
    /// Before sleeping: true when there is work to do first.
    fn arm(&mut self) -> bool;
    /// Hands everything written so far to the other side.
    fn flush(&mut self);
    /// True once after the card came to another place of the network, which may look for the machine at the old one.
    fn has_moved(&mut self) -> bool;
    /// Tells its state and figures.
    fn report(&self, to: &mut dyn Report);
    /// Ends it in good order.
    fn close(self);
}

/// A disk.
pub trait Disk: embedded_sdmmc::BlockDevice {
    /// False for [`Absent`]: what would have used a disk is left out of the image.
    const PRESENT: bool = true;
    /// Follows what becomes of it outside. One that is not there is to be closed; it, or another in its place, comes by
    /// [`Machine::disk`].
    fn is_there(&self) -> bool;
    /// Whether it is on its way back after a suspend. Nobody is to ask anything of it until it is there, or would wait.
    fn is_awaited(&self) -> bool {
        false
    }
    /// Whether writing is refused.
    fn read_only(&self) -> bool;
    /// Returns when all that was written is on stable storage.
    fn flush(&self) -> Result<(), Self::Error>;
    /// Tells its state and figures.
    fn report(&self, to: &mut dyn Report);
    /// Ends it in good order.
    fn close(self);
}

/// How long a suspend may wait for the next request.
const PREPARED: Duration = Duration::from_millis(20);

/// The running application.
#[derive(Debug)]
pub struct App<M: Machine> {
    machine: M,
    line: String,
    net: Option<net::Net<M::Nic>>,
    files: Option<files::Files<M::Disk>>,
    /// A disk without a file system that can be read.
    strange: Option<M::Disk>,
}

/// What the application's parts may look at while they work.
pub(crate) struct Context<'a, M: Machine> {
    pub(crate) machine: &'a M,
    pub(crate) files: Option<&'a files::Files<M::Disk>>,
}

impl<M: Machine> Context<'_, M> {
    /// Whether nobody is to ask anything of the files now.
    pub(crate) fn awaits_files(&self) -> bool {
        M::SUSPENDS && M::Disk::PRESENT && self.files.is_some_and(files::Files::is_awaited)
    }

    /// Files that are written from here on get the time that it is.
    pub(crate) fn set_time(&self) {
        if M::Disk::PRESENT
            && let Some(files) = self.files
        {
            files.set_time(self.machine.unix_time());
        }
    }
}

impl<M: Machine> App<M> {
    /// Takes over the machine. A part that is missing or does not work is reported and left out.
    pub fn new(machine: M, config: &Config, nic: Option<M::Nic>, disk: Option<M::Disk>) -> Self {
        let mut app = Self { machine, line: String::new(), net: None, files: None, strange: None };
        if let Some(disk) = disk {
            app.open(disk);
        }
        app.net = nic.map(|nic| net::Net::new(nic, config, app.machine.now()));
        log::info!("ready; type help on the console for its commands");
        app
    }

    fn open(&mut self, disk: M::Disk) {
        match files::Files::open(disk, self.machine.unix_time()) {
            Ok(files) => self.files = Some(files),
            Err((error, disk)) => {
                log::error!("disk: {error}; carrying on without files");
                self.strange = Some(disk);
            }
        }
    }

    fn files_are_awaited(&self) -> bool {
        M::Disk::PRESENT && self.files.as_ref().is_some_and(files::Files::is_awaited)
    }

    /// Lets go of a disk that is gone, and takes one that has come; true if there was any.
    fn follow_disk(&mut self) -> bool {
        if !M::Disk::PRESENT {
            return false;
        }
        let awaited = self.files_are_awaited();
        let there = match (&self.files, &self.strange) {
            (Some(files), _) => Some(files.is_there()),
            (None, strange) => strange.as_ref().map(Disk::is_there),
        };
        match there {
            // Those who wait for it are served again.
            Some(true) => awaited && !self.files_are_awaited(),
            Some(false) => {
                log::warn!("disk: gone");
                if let Some(net) = &mut self.net {
                    net.drop_transfers(&Context { machine: &self.machine, files: None });
                }
                let disk = self.files.take().map(files::Files::give_up);
                disk.into_iter().chain(self.strange.take()).for_each(Disk::close);
                true
            }
            None => {
                let disk = self.machine.disk();
                disk.map(|disk| self.open(disk)).is_some()
            }
        }
    }

    /// Serves until the machine is asked to stop; then everything is on stable storage.
    pub fn run(mut self) -> (M, Request) {
        let request = loop {
            self.machine.begin();
            let now = self.machine.now();
            // The card comes first, for somebody waits for an answer. All else can wait until it is out.
            let busy = self.turn(now);
            let disk_changed = self.follow_disk();
            if M::Nic::PRESENT
                && let Some(net) = &mut self.net
            {
                net.forgive(self.machine.now().saturating_sub(now));
            }
            let deadline = if busy || disk_changed { Some(now) } else { self.rest(now) };
            let stop = self.machine.poll().or_else(|| self.commands());
            match stop {
                // The round is over, and nobody knows what time it is.
                Some(Request::Suspend) if M::SUSPENDS => {
                    self.suspend();
                    continue;
                }
                Some(request) => break request,
                None => {}
            }
            if deadline.is_none_or(|at| at > now) {
                self.machine.sleep(deadline);
            }
        };
        log::info!("stopping: {request:?}");
        let Self { machine, net, files, strange, .. } = self;
        // What is never there needs nothing to end it, nor to drop it.
        if !M::Nic::PRESENT {
            core::mem::forget(net);
        } else if let Some(net) = net {
            net.shut(&Context { machine: &machine, files: files.as_ref() });
        }
        if !M::Disk::PRESENT {
            core::mem::forget(files);
        } else if let Some(files) = files {
            files.close();
        }
        strange.into_iter().for_each(Disk::close);
        (machine, request)
    }

    /// Waits a moment for somebody whom the machine can answer as soon as it goes on.
    fn prepare(&mut self) {
        let end = self.machine.now() + PREPARED;
        loop {
            self.machine.begin();
            let now = self.machine.now();
            let context = Context { machine: &self.machine, files: self.files.as_ref() };
            if now >= end || self.net.as_mut().is_none_or(|net| net.prepare(now, &context)) {
                return;
            }
            let due = self.rest(now).map_or(end, |due| due.min(end));
            if due > now {
                self.machine.sleep(Some(due));
            }
        }
    }

    fn suspend(&mut self) {
        if M::Nic::PRESENT {
            self.prepare();
        }
        let Self { machine, net, files, strange, .. } = self;
        let (began, since) = (machine.unix_time(), machine.now());
        let user = net.as_mut().filter(|_| M::Nic::PRESENT);
        match files {
            Some(files) if M::Disk::PRESENT => files.with_disk(|disk| machine.suspend(user, Some(disk))),
            _ => machine.suspend(user, strange.as_ref()),
        }
        let (passed, ran) = (machine.unix_time().saturating_sub(began), machine.now().saturating_sub(since));
        if let Some(net) = net {
            net.resume(ran, passed.saturating_sub(ran));
        }
    }

    /// One round of the network; true if there is more to do at once.
    fn turn(&mut self, now: Duration) -> bool {
        let context = Context { machine: &self.machine, files: self.files.as_ref() };
        M::Nic::PRESENT && self.net.as_mut().is_some_and(|net| net.turn(now, &context))
    }

    /// Gets the network ready for a sleep; returns when its next round is due (now: at once).
    fn rest(&mut self, now: Duration) -> Option<Duration> {
        if !M::Nic::PRESENT {
            return None;
        }
        self.net.as_mut().and_then(|net| net.rest(now))
    }

    fn commands(&mut self) -> Option<Request> {
        let mut buf = [0; 64];
        loop {
            let n = self.machine.console_read(&mut buf);
            for &byte in buf.get(..n)? {
                match byte {
                    b'\r' | b'\n' => {
                        self.machine.console_write("\n");
                        let line = core::mem::take(&mut self.line);
                        if let Some(request) = self.command(line.trim_ascii()) {
                            return Some(request);
                        }
                    }
                    8 | 127 if self.line.pop().is_some() => self.machine.console_write("\u{8} \u{8}"),
                    b' '..=b'~' if self.line.len() < 120 => {
                        self.line.push(char::from(byte));
                        self.machine.console_write(self.line.get(self.line.len() - 1..)?);
                    }
                    _ => {}
                }
            }
            if n == 0 {
                return None;
            }
        }
    }

    /// Every part's report, as the pages and the console show it.
    fn report(&self, to: &mut dyn Report) {
        self.machine.report(to);
        if M::Nic::PRESENT
            && let Some(net) = &self.net
        {
            net.report(to);
        }
        if M::Disk::PRESENT
            && let Some(files) = &self.files
        {
            files.report(to);
        }
    }

    fn print(&mut self, sections: &[&str]) {
        let mut text = Console::new(sections);
        self.report(&mut text);
        self.machine.console_write(&text.finish());
    }
}
