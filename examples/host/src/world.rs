//! Everything around the guest: the toolstack, its daemons and backends, the terminal, and the way to this machine.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result};
use mio::{Poll, Token, Waker};
use xen_blkfront::mock::{MockBlkback, Options as DiskOptions};
use xen_console::mock::MockConsoled;
use xen_hypercall::DomId;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_netfront::mock::{MockNetback, MockSwitch, Options as NicOptions};
use xen_xenstore::mock::MockXenstored;

use crate::proxy::Proxy;

/// The domain's number.
const GUEST: DomId = DomId(1);
/// `xvda`.
const DISK: u32 = 51712;
const TERMINAL: Token = Token(0);

pub(crate) struct World {
    guest: MockDomain,
    consoled: MockConsoled,
    shown: usize,
    typed: Receiver<String>,
    switch: MockSwitch,
    proxy: Proxy,
    poll: Poll,
    /// The store and the backends act by themselves, as the mock's actors, for as long as they exist.
    _disk: Option<MockBlkback>,
    _nic: MockNetback,
}

impl World {
    /// Makes a machine with the guest's devices, and listens on a port of this one.
    pub(crate) fn new(port: u16, disk: Option<&Path>, cmdline: &str) -> Result<Self> {
        let xen = MockXen::new();
        xen_evtchn::mock::install(&xen);
        xen_gnttab::mock::install(&xen);
        let store = MockXenstored::new(&xen);
        let guest = xen.domain(GUEST);
        store.connect(&guest);
        let home = format!("/local/domain/{}", GUEST.0);
        store.write(&format!("{home}/name"), "unikernel");
        for node in ["control", "control/shutdown"] {
            store.write(&format!("{home}/{node}"), "");
            store.set_permissions(&format!("{home}/{node}"), &format!("n{}", GUEST.0));
        }
        let consoled = MockConsoled::connect(&xen, &guest);
        let disk = disk.map(|path| open(path).and_then(|file| attach(&store, &guest, file))).transpose()?;
        let switch = MockSwitch::new(&xen);
        let nic = MockNetback::new(&switch, &store, &guest, 0, NicOptions::default());
        let poll = Poll::new().context("cannot wait for connections")?;
        let proxy = Proxy::new(switch.clone(), port, address(cmdline), poll.registry())?;
        let typed = terminal(Waker::new(poll.registry(), TERMINAL).context("cannot wait for the terminal")?);
        Ok(Self { guest, consoled, shown: 0, typed, switch, proxy, poll, _disk: disk, _nic: nic })
    }

    pub(crate) fn guest(&self) -> MockDomain {
        self.guest.clone()
    }

    pub(crate) fn switch(&self) -> MockSwitch {
        self.switch.clone()
    }

    /// Does what can be done at once; returns whether that was anything.
    pub(crate) fn turn(&mut self) -> bool {
        let mut moved = false;
        while let Ok(line) = self.typed.try_recv() {
            self.consoled.type_in(line.as_bytes());
            moved = true;
        }
        let output = self.consoled.output();
        if let Some(new) = output.get(self.shown..).filter(|new| !new.is_empty()) {
            let text = String::from_utf8_lossy(new).replace('\r', "");
            print!("{text}");
            let _ = std::io::stdout().flush();
            self.shown = output.len();
        }
        moved | self.proxy.turn(self.guest.xen().now(), self.poll.registry())
    }

    /// Sleeps until something moves outside, or for a while.
    pub(crate) fn sleep(&mut self, time: Duration) {
        let mut events = mio::Events::with_capacity(64);
        let time = self.proxy.delay(self.guest.xen().now()).map_or(time, |delay| delay.min(time));
        // Interrupted by a signal it returns early, which is allowed.
        let _ = self.poll.poll(&mut events, Some(time));
    }
}

fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.with_context(|| format!("cannot open the disk {}", path.display()))
}

fn attach(store: &MockXenstored, guest: &MockDomain, file: File) -> Result<MockBlkback> {
    MockBlkback::with_file(store, guest, DISK, DiskOptions::default(), file).context("cannot use the disk")
}

/// The guest's address, as its command line gives it.
fn address(cmdline: &str) -> std::net::Ipv4Addr {
    let word = cmdline.split_whitespace().find_map(|word| word.strip_prefix("ip="));
    word.and_then(webserver::config::address).map_or([10, 0, 0, 2].into(), |(address, _)| address)
}

/// What is typed, line by line.
fn terminal(waker: Waker) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { return };
            if sender.send(line + "\r").is_err() || waker.wake().is_err() {
                return;
            }
        }
    });
    receiver
}
