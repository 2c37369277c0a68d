//! Everything around the guest: the toolstack, its daemons and backends, the terminal, and the way to this machine.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::prelude::rust_2024::*;
use std::sync::Arc;
use std::time::Duration;
use std::{eprintln, format};

use anyhow::{Context, Result, bail};
use mio::{Events, Poll, Token, Waker};
use xen_blkfront::mock::{MockBlkback, Options as DiskOptions};
use xen_console::mock::MockConsoled;
use xen_hypercall::DomId;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::sched::ShutdownCode;
use xen_netfront::mock::{MockNetback, MockSwitch, Options as NicOptions};
use xen_xenstore::mock::MockXenstored;

use super::args::Args;
use super::forward::Forwarder;
use super::outside::{INTERRUPTED, Outside};

/// The domain's number.
const GUEST: DomId = DomId(1);
/// What wakes the process beside connections.
const OUTSIDE: Token = Token(0);
const FIRST_CONNECTION: usize = 1;
/// `xvda`; each further disk's number is 16 higher.
const FIRST_DISK: u32 = 51712;
/// Up to `xvdp`, which these numbers reach.
const DISKS: usize = 16;

/// A client that sends on and on does not keep the process from its end.
const LAST_ROUNDS: usize = 1000;

/// The status of a process that cannot make the machine.
pub(super) const NO_MACHINE: i32 = 1;
/// The status of a process whose guest wants to be started again.
const REBOOT: i32 = 3;
/// The status of a process whose guest has crashed, as of a program that panics.
pub(super) const CRASHED: i32 = 101;

pub(super) struct World {
    guest: MockDomain,
    store: MockXenstored,
    consoled: MockConsoled,
    switch: MockSwitch,
    forwarder: Forwarder,
    poll: Poll,
    outside: Outside,
    pcap: Option<PathBuf>,
    migrations: Option<Migrations>,
    /// The backends act by themselves, as the mock's actors, for as long as they exist.
    _disks: Vec<MockBlkback>,
    _nic: Option<MockNetback>,
}

/// When the guest is migrated.
struct Migrations {
    each: Duration,
    next: Duration,
    /// The domain that was asked, and has not been suspended yet.
    asked: Option<DomId>,
}

impl World {
    /// Makes a machine with the guest and its devices, and listens on the ports that lead to it.
    pub(super) fn new(args: &Args) -> Result<Self> {
        let xen = MockXen::new();
        xen_evtchn::mock::install(&xen);
        xen_gnttab::mock::install(&xen);
        let store = MockXenstored::new(&xen);
        let guest = xen.domain(GUEST);
        guest.set_vcpus(args.vcpus as usize);
        store.connect(&guest);
        store.write(&node(GUEST, "name"), args.name());
        let consoled = MockConsoled::connect(&xen, &guest);
        if args.disks.len() > DISKS {
            bail!("{} disks are more than the {DISKS} that a guest can have", args.disks.len());
        }
        let disks = args.disks.iter().zip((FIRST_DISK..).step_by(16));
        let disks = disks.map(|(path, index)| attach(&store, &guest, index, path)).collect::<Result<_>>()?;
        let switch = MockSwitch::new(&xen);
        let nic = (!args.no_vif).then(|| {
            let nic = MockNetback::new(&switch, &store, &guest, 0, NicOptions::default());
            // As xl does for `vif=['ip=10.0.0.2']`.
            nic.set_back("ip", &args.address().to_string());
            nic
        });
        let poll = Poll::new().context("cannot wait for anything")?;
        let mut forwarder = Forwarder::new(&switch, args.address(), FIRST_CONNECTION);
        for forward in &args.forwards {
            let port =
                forwarder.listen(*forward, poll.registry()).map_err(|error| explain(error, forward.host))?;
            eprintln!("127.0.0.1:{port} leads to port {} of the guest ({})", forward.guest, args.address());
        }
        let waker = mio::Waker::new(poll.registry(), OUTSIDE).context("cannot wait for the terminal")?;
        let outside = Outside::new(waker)?;
        let pcap = args.pcap.clone();
        let migrations = args.migrate.map(Duration::from_millis);
        let migrations = migrations.map(|each| Migrations { each, next: xen.now() + each, asked: None });
        Ok(Self {
            guest,
            store,
            consoled,
            switch,
            forwarder,
            poll,
            outside,
            pcap,
            migrations,
            _disks: disks,
            _nic: nic,
        })
    }

    /// What ends a [sleep](Self::sleep).
    pub(super) fn waker(&self) -> Arc<Waker> {
        self.outside.waker()
    }

    pub(super) fn guest(&self) -> MockDomain {
        self.guest.clone()
    }

    /// Does what can be done at once. Returns whether that was anything.
    pub(super) fn turn(&mut self) -> bool {
        let mut moved = self.guest.xen().step();
        while let Some(line) = self.outside.line() {
            self.consoled.type_in(line.as_bytes());
            moved = true;
        }
        moved |= self.show() | self.migrate();
        if self.outside.asks_to_end() {
            self.power_off();
            moved = true;
        }
        if let Some(reason) = self.guest.shutdown_reason().filter(|reason| *reason != ShutdownCode::SUSPEND) {
            self.end(reason);
        }
        let now = self.guest.xen().now();
        moved | self.forwarder.turn(now, self.poll.registry())
    }

    /// Shows what the guest has written to its console. Returns whether there was anything.
    fn show(&self) -> bool {
        let output = self.consoled.take_output();
        if output.is_empty() {
            return false;
        }
        // A terminal's line ends with more than a file's.
        let text = String::from_utf8_lossy(&output).replace('\r', "");
        let mut stdout = io::stdout().lock();
        // Nobody may be there to read it.
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        true
    }

    /// Sleeps until something moves outside, or for a time.
    pub(super) fn sleep(&mut self, time: Option<Duration>) {
        let mut events = Events::with_capacity(64);
        let now = self.guest.xen().now();
        let next = self.migrations.as_ref().filter(|migrations| migrations.asked.is_none());
        let next = next.map(|migrations| migrations.next.saturating_sub(now));
        // A guest that cannot be suspended, or not yet, is asked after each sleep.
        let next = next.filter(|next| !next.is_zero());
        let delay = self.forwarder.delay(now);
        // Interrupted by a signal it returns early, which is allowed.
        let _ = self.poll.poll(&mut events, time.into_iter().chain(delay).chain(next).min());
    }

    fn node(&self, name: &str) -> String {
        node(self.guest.id(), name)
    }

    /// Does as `xl migrate`, when it is time. The guest is another domain once it has suspended itself. Returns whether it was asked to.
    fn migrate(&mut self) -> bool {
        let (now, id) = (self.guest.xen().now(), self.guest.id());
        let Some(migrations) = &mut self.migrations else { return false };
        if migrations.asked.is_some_and(|asked| asked != id) {
            (migrations.asked, migrations.next) = (None, now + migrations.each);
        }
        if migrations.asked.is_some() || now < migrations.next {
            return false;
        }
        if self.store.read(&node(id, "control/feature-suspend")).as_deref() != Some("1") {
            return false;
        }
        migrations.asked = Some(id);
        self.store.write(&node(id, "control/shutdown"), "suspend");
        true
    }

    /// Does as `xl shutdown`.
    fn power_off(&mut self) {
        if self.store.read(&self.node("control/feature-poweroff")).as_deref() == Some("1") {
            eprintln!("the guest is asked to power off");
            self.store.write(&self.node("control/shutdown"), "poweroff");
        } else {
            self.finish();
            eprintln!("the guest does not watch for requests to power off, so it is ended");
            std::process::exit(INTERRUPTED);
        }
    }

    /// The guest is down.
    pub(super) fn end(&mut self, reason: ShutdownCode) -> ! {
        self.finish();
        let (status, what) = match reason {
            ShutdownCode::POWEROFF => (0, "the guest has powered off"),
            ShutdownCode::REBOOT => (REBOOT, "the guest wants to be started again"),
            ShutdownCode::WATCHDOG => (CRASHED, "the guest was ended by its watchdog"),
            _ => (CRASHED, "the guest has crashed"),
        };
        eprintln!("{what}");
        std::process::exit(status)
    }

    /// Carries, shows and writes down what is left.
    pub(super) fn finish(&mut self) {
        for _ in 0..LAST_ROUNDS {
            let now = self.guest.xen().now();
            let moved = self.guest.xen().step() | self.show();
            if !(moved | self.forwarder.turn(now, self.poll.registry())) {
                break;
            }
        }
        let Some(path) = self.pcap.take() else { return };
        if let Err(error) = fs::write(&path, self.switch.pcap()) {
            eprintln!("error: cannot write {}: {error}", path.display());
        }
    }
}

/// One of a domain's own nodes.
fn node(domain: DomId, name: &str) -> String {
    format!("/local/domain/{}/{name}", domain.0)
}

/// Gives the guest a disk in a file.
fn attach(store: &MockXenstored, guest: &MockDomain, index: u32, path: &Path) -> Result<MockBlkback> {
    let file = open(path).with_context(|| format!("cannot use {} as a disk", path.display()))?;
    let disk = MockBlkback::with_file(store, guest, index, DiskOptions::default(), file);
    disk.with_context(|| format!("cannot use {} as a disk", path.display()))
}

fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        bail!("it is no file; a disk is a file with the bytes of a disk");
    }
    if found.len() < 512 {
        bail!("it has {} bytes, which is less than a sector", found.len());
    }
    Ok(file)
}

/// Says what to do about a port that cannot be had.
fn explain(error: anyhow::Error, port: u16) -> anyhow::Error {
    match error.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(ErrorKind::AddrInUse) => {
            error.context(format!("port {port} is in use; choose another by --forward HOSTPORT:GUESTPORT"))
        }
        Some(ErrorKind::PermissionDenied) => error.context(format!(
            "port {port} is not for this user; choose one from 1024 on by --forward HOSTPORT:GUESTPORT"
        )),
        _ => error,
    }
}
