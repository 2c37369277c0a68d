//! The kernel's tasks on a mock machine, on which everything outside hangs, one after the other, and devices come and go. Time is the
//! machine's.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration as Time;

use embassy_executor::Spawner;
use embassy_executor::raw::TaskStorage;
use embassy_kernel::{Domain, Ending};
use embassy_time::{Instant, Timer};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use xen_blkfront::mock::{MockBlkback, Options as DiskOptions};
use xen_console::mock::MockConsoled;
use xen_console::{Console, SharedConsole};
use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::DomId;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_netfront::mock::{HostDevice, MockNetback, MockSwitch, Options as CardOptions};
use xen_rt::embassy::Executor;
use xen_xenstore::Xenstore;
use xen_xenstore::mock::MockXenstored;

/// No tick is later.
const LATEST: Time = Time::from_millis(50);

fn disk_bytes() -> Vec<u8> {
    (0..600_000_u32).map(|at| (at.wrapping_mul(at) % 251) as u8).take(512 * 1000).collect()
}

/// Everything around the guest.
struct Outside {
    store: MockXenstored,
    console: MockConsoled,
    card: MockNetback,
    disk: MockBlkback,
    visitor: Visitor,
}

/// Starts a future of the test's own as a task.
fn start<F: Future<Output = ()> + 'static>(spawner: Spawner, future: F) {
    let task: &'static TaskStorage<F> = Box::leak(Box::new(TaskStorage::new()));
    spawner.spawn(task.spawn(move || future).unwrap());
}

/// Runs the kernel while `happens` happens around it. Returns its end, when that came, and by how much a tick was late at the most.
fn run<F: Future<Output = ()> + 'static>(happens: impl FnOnce(Rc<Outside>) -> F) -> (Ending, Time, Time) {
    let xen = MockXen::new();
    xen_evtchn::mock::install(&xen);
    xen_gnttab::mock::install(&xen);
    let store = MockXenstored::new(&xen);
    let guest = xen.domain(DomId(1));
    store.connect(&guest);
    let console = MockConsoled::connect(&xen, &guest);
    let switch = MockSwitch::new(&xen);
    let card = MockNetback::new(&switch, &store, &guest, 0, CardOptions::default());
    card.set_back("ip", "10.0.0.2");
    let disk =
        MockBlkback::new(&store, &guest, 51712, DiskOptions { sectors: 1000, ..DiskOptions::default() });
    disk.load(&disk_bytes());
    let token = guest.boot().unwrap();
    let events: &'static EventChannels<MockDomain> = Box::leak(Box::new(EventChannels::new(&token).unwrap()));
    let grants: &'static GrantTable<MockDomain> = Box::leak(Box::new(GrantTable::new(&token).unwrap()));
    let terminal: &'static _ = Box::leak(Box::new(SharedConsole::new(Console::new(events).unwrap())));
    let domain = Domain::new(events, grants, Xenstore::new(events).unwrap());
    let visitor = Visitor::default();
    let outside = Rc::new(Outside { store, console, card, disk, visitor: visitor.clone() });
    let executor = Executor::on(events);
    executor.run_until(
        |spawner| {
            domain.start(spawner, terminal);
            start(spawner, visitor.run(HostDevice::new(&switch)));
            start(spawner, happens(outside));
        },
        || {
            assert!(xen.now() < Time::from_secs(600), "it does not end");
            domain.ending().is_some()
        },
    );
    let end = xen.now();
    // Each tick came, and none was passed over.
    let missing = (end.as_millis() / 10) as u64 - domain.ticks();
    assert!(missing <= 1, "{missing} ticks are missing");
    (domain.ending().unwrap(), end, domain.latest())
}

/// Asks the web server for the disk again and again.
#[derive(Clone, Default)]
struct Visitor {
    /// How many responses had the whole disk in them.
    whole: Rc<Cell<u32>>,
    /// How many responses said that there is no disk, or ended too early.
    other: Rc<Cell<u32>>,
}

impl Visitor {
    async fn run(self, mut device: HostDevice) {
        let mac = EthernetAddress([0x02, 0, 0, 0, 0, 1]);
        let now = || smoltcp::time::Instant::from_micros(Instant::now().as_micros() as i64);
        let mut iface = Interface::new(Config::new(mac.into()), &mut device, now());
        iface.update_ip_addrs(|list| list.push(IpCidr::new(IpAddress::v4(10, 0, 0, 1), 24)).unwrap());
        let mut sockets = SocketSet::new(Vec::new());
        let buffer = |len| tcp::SocketBuffer::new(vec![0; len]);
        let handle = sockets.add(tcp::Socket::new(buffer(64 << 10), buffer(1024)));
        let (body, mut answer) = (disk_bytes(), Vec::new());
        let (mut port, mut asked) = (50_000, false);
        loop {
            iface.poll(now(), &mut device, &mut sockets);
            if !self.turn(sockets.get_mut(handle), &mut asked, &mut answer) {
                if !answer.is_empty() {
                    let whole = answer.ends_with(&body);
                    let figure = if whole { &self.whole } else { &self.other };
                    figure.set(figure.get() + 1);
                }
                answer.clear();
                asked = false;
                Timer::after_millis(250).await;
                port = if port == 60_000 { 50_000 } else { port + 1 };
                self.call(&mut iface, &mut sockets, handle, port);
            }
            Timer::after_millis(1).await;
        }
    }

    /// Takes what there is of an answer. Returns whether more may come.
    fn turn(&self, socket: &mut tcp::Socket<'_>, asked: &mut bool, answer: &mut Vec<u8>) -> bool {
        if !*asked && socket.may_send() {
            socket.send_slice(b"GET /disk HTTP/1.1\r\nHost: guest\r\n\r\n").unwrap();
            *asked = true;
        }
        while let Ok(count) = socket.recv(|bytes| {
            answer.extend_from_slice(bytes);
            (bytes.len(), bytes.len())
        }) {
            if count == 0 {
                break;
            }
        }
        if socket.is_open() && !socket.may_recv() && socket.may_send() && !answer.is_empty() {
            socket.close();
        }
        socket.is_open() && socket.state() != tcp::State::TimeWait
    }

    fn call(&self, iface: &mut Interface, sockets: &mut SocketSet<'_>, handle: SocketHandle, port: u16) {
        let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.abort();
        socket.set_timeout(Some(smoltcp::time::Duration::from_secs(5)));
        socket.connect(iface.context(), (IpAddress::v4(10, 0, 0, 2), 80), port).unwrap();
    }

    /// Waits until the whole disk was answered so many times more.
    async fn visits(&self, times: u32) {
        let until = self.whole.get() + times;
        while self.whole.get() < until {
            Timer::after_millis(10).await;
        }
    }
}

#[test]
fn whatever_hangs_no_tick_is_late() {
    let hung = Rc::new(RefCell::new(Vec::new()));
    let told = hung.clone();
    let (ending, _, latest) = run(|outside| async move {
        outside.visitor.visits(2).await;
        type Stall = fn(&Outside, bool);
        let all: [(&str, Stall); 4] = [
            ("daemon", |outside, stalls| outside.store.stall(stalls)),
            ("card", |outside, stalls| outside.card.stall(stalls)),
            ("disk", |outside, stalls| outside.disk.stall(stalls)),
            ("reader", |outside, stalls| outside.console.stall_reader(stalls)),
        ];
        for (name, stall) in all {
            stall(&outside, true);
            // More than a console holds.
            outside.console.type_in(b"help\rdisk\rstats\r".repeat(30).as_slice());
            outside.store.write("/local/domain/1/data/message", name);
            Timer::after_secs(12).await;
            let before = outside.visitor.whole.get();
            Timer::after_secs(12).await;
            // Those who do not need what hangs go on.
            let visited = outside.visitor.whole.get() > before;
            assert_eq!(visited, name != "card" && name != "disk", "{name}");
            stall(&outside, false);
            outside.visitor.visits(2).await;
            told.borrow_mut().push(name);
        }
        outside.store.write("/local/domain/1/control/shutdown", "poweroff");
    });
    assert_eq!(*hung.borrow(), ["daemon", "card", "disk", "reader"]);
    assert_eq!(ending, Ending::PowerOff);
    assert!(latest <= LATEST, "a tick was {latest:?} late");
}

#[test]
fn devices_come_and_go_under_traffic() {
    let (ending, _, latest) = run(|outside| async move {
        for _ in 0..3 {
            outside.visitor.visits(2).await;
            outside.disk.detach();
            Timer::after_secs(2).await;
            let (whole, other) = (outside.visitor.whole.get(), outside.visitor.other.get());
            Timer::after_secs(2).await;
            assert_eq!(outside.visitor.whole.get(), whole, "there is no disk");
            assert!(outside.visitor.other.get() > other, "nobody waits for it");
            outside.disk.come_back();
            outside.visitor.visits(2).await;
            outside.card.detach();
            Timer::after_secs(2).await;
            outside.card.come_back();
            outside.visitor.visits(2).await;
            outside.disk.vanish();
            Timer::after_secs(1).await;
            outside.disk.come_back();
            outside.visitor.visits(2).await;
        }
        outside.console.type_in(b"reboot\r");
    });
    assert_eq!(ending, Ending::Reboot);
    assert!(latest <= LATEST, "a tick was {latest:?} late");
}
