//! The whole of a guest: it says hello on its console, tells its name, and answers one TCP connection.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec;
use core::time::Duration;

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use xen_gnttab::GrantTable;
use xen_netfront::adapters::smoltcp::SmoltcpDevice;
use xen_netfront::{Error, FRAME_MAX, NetFront};
use xen_rt::{Exit, Guest, println};
use xen_xenstore::Xenstore;

xen_rt::entry!(main);

fn main(guest: Guest) -> Result<Exit, Error> {
    println!("hello from {} MiB of memory", guest.ram() >> 20);
    let (events, grants) = (guest.events(), GrantTable::new(guest.domain())?);
    let Ok(mut store) = Xenstore::new(events).inspect_err(|error| println!("no store: {error}")) else {
        println!("alone; that is all");
        return Ok(Exit::PowerOff);
    };
    println!("I am {}", store.read_str("name")?);

    let card = NetFront::connect(&mut store, events, &grants, 0, guest.now() + Duration::from_secs(10))?;
    let config = Config::new(EthernetAddress(card.mac().0).into());
    let mut card = SmoltcpDevice::new(card, vec![0; FRAME_MAX], vec![0; 1514]);
    let now = || Instant::from_micros(guest.now().as_micros() as i64);
    let mut network = Interface::new(config, &mut card, now());
    network.update_ip_addrs(|list| list.extend([IpCidr::new(IpAddress::v4(10, 0, 0, 2), 24)]));
    let mut socket = Socket::new(SocketBuffer::new(vec![0; 1024]), SocketBuffer::new(vec![0; 1024]));
    socket.listen(80).expect("a port that is free");
    let mut sockets = SocketSet::new(vec![]);
    let handle = sockets.add(socket);
    println!("listening at 10.0.0.2, port 80");

    while sockets.get::<Socket<'_>>(handle).is_open() {
        let seen = events.seq();
        network.poll(now(), &mut card, &mut sockets);
        let socket = sockets.get_mut::<Socket<'_>>(handle);
        if socket.recv(|request| (request.len(), request.ends_with(b"\n"))) == Ok(true) {
            let _ = socket.send_slice(b"HTTP/1.0 200 OK\r\n\r\nHello from Xen.\n");
            socket.close();
            network.poll(now(), &mut card, &mut sockets);
        }
        card.publish()?;
        if !card.front_mut().arm()? {
            let wait = network.poll_delay(now(), &sockets).map(Duration::from);
            events.wait_since(seen, wait.map(|wait| guest.now() + wait));
        }
    }
    println!("answered; that is all");
    Ok(Exit::PowerOff)
}
