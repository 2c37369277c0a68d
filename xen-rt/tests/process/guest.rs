//! What the kernel does when it is told to by its command line.

use std::cell::Cell;
use std::ptr::NonNull;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use xen_blkfront::BlkFront;
use xen_gnttab::GrantTable;
use xen_hypercall::PageMemory;
use xen_hypercall::sched::{self, ShutdownReason};
use xen_netfront::adapters::smoltcp::SmoltcpDevice;
use xen_netfront::{FRAME_MAX, NetFront};
use xen_rt::{Exit, Guest, console, println};
use xen_xenstore::{Path, Xenstore, control};

/// How long a device may take to connect.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn play(guest: Guest, role: &str) -> Exit {
    println!("begins as={role}");
    match role {
        "off" => Exit::PowerOff,
        "reboot" => Exit::Reboot,
        "crash" => xen_rt::crash(format_args!("because it was told so")),
        "panic" => panic!("on purpose"),
        "lost" => panic!("a page of nobody's has the frame {}", guest.kernel().gfn(NonNull::dangling())),
        "call" => {
            let refused = sched::shutdown(&guest.kernel(), ShutdownReason::POWEROFF);
            panic!("a domain that is down goes on: {refused:?}")
        }
        "watchdog" => {
            sched::start_watchdog(&guest.kernel(), Duration::from_secs(1)).expect("a watchdog");
            sleep_for_ever(guest)
        }
        "echo" => echo(guest),
        "store" => store(guest),
        "disks" => disks(guest),
        "memory" => memory(guest),
        "obey" => obey(guest),
        "wait" => {
            println!("waiting");
            sleep_for_ever(guest)
        }
        "busy" => {
            println!("busy");
            console::drain();
            loop {
                std::hint::spin_loop();
            }
        }
        "serve" => serve(guest, &[7, 8]),
        "once" => serve(guest, &[9]),
        #[cfg(feature = "embassy")]
        "tasks" => crate::tasks::echo(guest),
        #[cfg(all(feature = "embassy", feature = "smp"))]
        "tasks-vcpus" => crate::tasks::vcpus(guest),
        #[cfg(feature = "smp")]
        "vcpus" => vcpus(guest),
        #[cfg(feature = "smp")]
        "vcpu-reboot" => on_another(guest, || xen_rt::exit(Exit::Reboot)),
        #[cfg(feature = "smp")]
        "vcpu-panic" => on_another(guest, || panic!("on purpose")),
        _ => panic!("no such role"),
    }
}

/// All vCPUs at work, after one did not come up for want of ports.
#[cfg(feature = "smp")]
fn vcpus(guest: Guest) -> Exit {
    use std::sync::atomic::{AtomicU32, Ordering};
    use xen_hypercall::{VcpuId, Wait};
    use xen_rt::smp::{Error, Vcpu, Vcpus};

    let events = guest.events();
    let all: Vec<_> = std::iter::from_fn(|| events.bind_ipi(VcpuId(0)).ok()).collect();
    assert!(matches!(Vcpu::start(guest, VcpuId(1)), Err(Error::Events(_))));
    drop(all);
    let vcpus = Vcpus::start(guest).expect("vCPUs");
    assert!(matches!(Vcpu::start(guest, VcpuId(1)), Err(Error::Start(_))));
    // Each rings for the next, which sleeps until then; the last one for the first.
    static TURN: AtomicU32 = AtomicU32::new(1);
    let bells: Vec<_> =
        (0..=vcpus.len() as u32).map(|id| events.bind_ipi(VcpuId(id)).expect("a bell")).collect();
    let bells: &'static [_] = bells.leak();
    let wait = move |me: u32| {
        while TURN.load(Ordering::SeqCst) != me {
            let seen = events.seq();
            if TURN.load(Ordering::SeqCst) != me {
                events.wait_since(seen, None);
            }
        }
    };
    let pass = move |me: u32| {
        let next = (me + 1) % bells.len() as u32;
        TURN.store(next, Ordering::SeqCst);
        bells[next as usize].notify().expect("an event");
    };
    for round in 0..50 {
        for vcpu in &vcpus {
            let given = vcpu.run(move || {
                let me = guest.kernel().vcpu().0;
                wait(me);
                println!("round {round} vCPU {me}");
                pass(me);
            });
            given.expect("it is idle");
        }
        wait(0);
        // Who rang last is about to be idle.
        while !vcpus.iter().all(|vcpu| vcpu.is_idle()) {
            std::thread::yield_now();
        }
        TURN.store(1, Ordering::SeqCst);
        bells[1].notify().expect("an event");
    }
    Exit::PowerOff
}

/// The first vCPU sleeps while another does this.
#[cfg(feature = "smp")]
fn on_another(guest: Guest, act: fn() -> !) -> ! {
    let vcpus = xen_rt::smp::Vcpus::start(guest).expect("vCPUs");
    let given = vcpus[0].run(move || {
        println!("another vCPU");
        act()
    });
    given.expect("it is idle");
    sleep_for_ever(guest)
}

fn sleep_for_ever(guest: Guest) -> ! {
    loop {
        guest.events().wait_since(guest.events().seq(), None);
    }
}

/// The lines that were typed, each once it is whole.
fn typed(line: &mut String) -> Option<String> {
    let mut bytes = [0; 64];
    let count = console::read(&mut bytes);
    line.extend(bytes[..count].iter().map(|byte| char::from(*byte)));
    let (first, rest) = line.split_once('\r')?;
    let (first, rest) = (first.to_owned(), rest.to_owned());
    *line = rest;
    Some(first)
}

fn echo(guest: Guest) -> Exit {
    let mut line = String::new();
    loop {
        let seen = guest.events().seq();
        match typed(&mut line) {
            Some(end) if end == "end" => return Exit::PowerOff,
            Some(typed) => println!("typed: {typed}"),
            None => guest.events().wait_since(seen, None),
        }
    }
}

fn store(guest: Guest) -> Exit {
    let mut xs = Xenstore::new(guest.events()).expect("a store");
    let name = xs.read_str("name").expect("a name").to_owned();
    match xs.read_str("device/vif/0/backend").map(str::to_owned) {
        Ok(backend) => {
            let path = Path::new(&backend).and_then(|path| path.join("ip")).expect("a path");
            println!("name {name}, card at {}", xs.read_str(&path).expect("an address"));
        }
        Err(_) => println!("name {name}, no card"),
    }
    Exit::PowerOff
}

fn disks(guest: Guest) -> Exit {
    let grants = GrantTable::new(guest.domain()).expect("grants");
    let mut xs = Xenstore::new(guest.events()).expect("a store");
    for index in [51712, 51728] {
        let deadline = guest.now() + PATIENCE;
        let mut disk = BlkFront::connect(&mut xs, guest.events(), &grants, index, deadline).expect("a disk");
        let mut sector = [0; 512];
        disk.read(1, &mut sector).expect("read");
        println!("disk {index}: {} sectors of {}", disk.capacity(), sector[0]);
        disk.write(1, &[0x5A; 512]).and_then(|()| disk.flush()).expect("written");
        disk.close(&mut xs, deadline).expect("closed");
    }
    Exit::PowerOff
}

fn memory(guest: Guest) -> Exit {
    let before = xen_rt::memory();
    let pages = std::iter::from_fn(|| guest.kernel().alloc_pages(1)).count();
    println!("pages: {pages}");
    let after = xen_rt::memory();
    assert_eq!((after.free, after.used - before.used), (0, pages * 4096));
    Exit::PowerOff
}

fn obey(guest: Guest) -> Exit {
    let mut xs = Xenstore::new(guest.events()).expect("a store");
    let watch = control::ShutdownWatch::new(&mut xs, &[control::Request::PowerOff]).expect("a watch");
    println!("watching");
    loop {
        let seen = guest.events().seq();
        if let Some(request) = watch.poll(&mut xs).expect("an answer") {
            println!("asked for {request:?}");
            assert!(watch.accept(&mut xs, request).expect("accepted"));
            return Exit::PowerOff;
        }
        guest.events().wait_since(seen, None);
    }
}

/// Gives back each byte's complement, on each port, until the word `end` is typed; on port 9, says goodbye and ends.
fn serve(guest: Guest, ports: &[u16]) -> Exit {
    let events = guest.events();
    let grants = GrantTable::new(guest.domain()).expect("grants");
    let mut xs = Xenstore::new(events).expect("a store");
    let front = NetFront::connect(&mut xs, events, &grants, 0, guest.now() + PATIENCE).expect("a card");
    let mac = EthernetAddress(front.mac().0);
    let mut device = SmoltcpDevice::new(front, vec![0; FRAME_MAX], vec![0; 1514]);
    let now = || Instant::from_micros(guest.now().as_micros() as i64);
    let mut iface = Interface::new(Config::new(mac.into()), &mut device, now());
    iface.update_ip_addrs(|list| list.push(IpCidr::new(IpAddress::v4(10, 0, 0, 2), 24)).expect("room"));
    let mut sockets = SocketSet::new(Vec::new());
    let buffer = || tcp::SocketBuffer::new(vec![0; 32 << 10]);
    let handles: Vec<_> = ports.iter().map(|_| sockets.add(tcp::Socket::new(buffer(), buffer()))).collect();
    for (handle, port) in handles.iter().zip(ports) {
        sockets.get_mut::<tcp::Socket<'_>>(*handle).listen(*port).expect("a port");
    }
    println!("serving");
    let (mut line, over) = (String::new(), Cell::new(false));
    while !over.get() {
        let seen = events.seq();
        iface.poll(now(), &mut device, &mut sockets);
        for handle in &handles {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
            if ports == [9] && socket.can_recv() {
                socket.send_slice(b"goodbye").expect("room");
                socket.close();
                over.set(true);
            }
            while ports != [9] && socket.can_recv() && socket.can_send() {
                let room = socket.send_capacity() - socket.send_queue();
                let mut part = vec![0; room.min(2048)];
                let count = socket.recv_slice(&mut part).expect("there is something");
                part.iter_mut().for_each(|byte| *byte = !*byte);
                socket.send_slice(&part[..count]).expect("there is room");
            }
            if !socket.may_recv() && socket.may_send() && !socket.can_recv() && socket.is_active() {
                socket.close();
            }
        }
        iface.poll(now(), &mut device, &mut sockets);
        device.publish().expect("a card that works");
        over.set(over.get() || typed(&mut line).is_some_and(|line| line == "end"));
        let delay =
            iface.poll_delay(now(), &sockets).map(|delay| Duration::from_micros(delay.total_micros()));
        if !over.get() && !device.front_mut().arm().expect("a card that works") {
            events.wait_since(seen, delay.map(|delay| guest.now() + delay));
        }
    }
    // A device that is dropped takes back what its other side has not looked at yet.
    xen_rt::exit(Exit::PowerOff)
}
