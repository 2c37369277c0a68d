//! Connections to ports of this machine, carried on to the guest by a TCP stack at the switch's port for the host.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::prelude::rust_2024::*;
use std::time::Duration;
use std::vec;

use anyhow::{Context, Result};
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};
use xen_netfront::mock::{HostDevice, MockSwitch};

use super::args::Forward;

const MAC: EthernetAddress = EthernetAddress([0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
/// Each connection's buffers, one for each way.
const BUFFER: usize = 64 * 1024;
/// A guest that says nothing for so long has hung, or has no card.
const PATIENCE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(60);
/// The first of the ports that the host's ends of connections have.
const FIRST_PORT: u16 = 49152;

/// The host's stack, and the ports that lead to the guest by it.
pub(super) struct Forwarder {
    device: HostDevice,
    iface: Interface,
    sockets: SocketSet<'static>,
    listeners: Vec<(TcpListener, Forward)>,
    connections: BTreeMap<usize, Connection>,
    /// The token of the next thing to wait for.
    next: usize,
    guest: Ipv4Addr,
}

struct Connection {
    stream: TcpStream,
    handle: SocketHandle,
    /// Nothing more comes from the client.
    all_sent: bool,
    /// Nothing more goes to it.
    all_received: bool,
}

impl Forwarder {
    /// A stack without ports yet; tokens from `first_token` on are its own.
    pub(super) fn new(switch: &MockSwitch, guest: Ipv4Addr, first_token: usize) -> Self {
        let mut device = HostDevice::new(switch);
        let mut iface = Interface::new(Config::new(MAC.into()), &mut device, Instant::ZERO);
        let [a, b, c, d] = guest.octets();
        // Any other address of the same network will do for the host.
        let host = Ipv4Addr::new(a, b, c, if d == 1 { 254 } else { 1 });
        iface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(host.into(), 24));
        });
        let (sockets, connections) = (SocketSet::new(Vec::new()), BTreeMap::new());
        Self { device, iface, sockets, listeners: Vec::new(), connections, next: first_token, guest }
    }

    fn token(&mut self) -> Token {
        let token = Token(self.next);
        self.next += 1;
        token
    }

    /// Listens on a port of 127.0.0.1, and returns which it is.
    pub(super) fn listen(&mut self, forward: Forward, registry: &Registry) -> Result<u16> {
        let Forward { host, guest } = forward;
        let mut listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, host).into()).with_context(|| format!("port {host}"))?;
        let port = listener.local_addr().context("cannot tell the port's number")?.port();
        let token = self.token();
        registry
            .register(&mut listener, token, Interest::READABLE)
            .with_context(|| format!("cannot wait for connections to port {port}"))?;
        self.listeners.push((listener, Forward { host: port, guest }));
        Ok(port)
    }

    /// How long nothing has to be done, if nothing moves. None: for ever.
    pub(super) fn delay(&mut self, now: Duration) -> Option<Duration> {
        let delay = self.iface.poll_delay(instant(now), &self.sockets)?;
        Some(Duration::from_micros(delay.total_micros()))
    }

    /// Moves what can be moved at once. Returns whether that was anything.
    pub(super) fn turn(&mut self, now: Duration, registry: &Registry) -> bool {
        let mut moved = self.accept(registry);
        moved |= self.poll(now);
        let Self { connections, sockets, .. } = self;
        connections.retain(|_, connection| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(connection.handle);
            moved |= connection.carry(socket);
            let lives = connection.lives(socket);
            if !lives {
                let _ = registry.deregister(&mut connection.stream);
                sockets.remove(connection.handle);
            }
            lives
        });
        if moved {
            self.poll(now);
        }
        moved
    }

    fn poll(&mut self, now: Duration) -> bool {
        let polled = self.iface.poll(instant(now), &mut self.device, &mut self.sockets);
        polled == PollResult::SocketStateChanged
    }

    fn accept(&mut self, registry: &Registry) -> bool {
        let mut accepted = Vec::new();
        for (listener, forward) in &self.listeners {
            while let Ok((stream, _)) = listener.accept() {
                accepted.push((stream, forward.guest));
            }
        }
        let any = !accepted.is_empty();
        for (stream, port) in accepted {
            // A client that cannot be waited for is hung up on.
            let _ = self.connect(stream, port, registry);
        }
        any
    }

    fn connect(&mut self, mut stream: TcpStream, port: u16, registry: &Registry) -> io::Result<()> {
        let token = self.token();
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        let _ = stream.set_nodelay(true);
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(PATIENCE));
        let local = FIRST_PORT + (token.0 % usize::from(u16::MAX - FIRST_PORT)) as u16;
        socket.connect(self.iface.context(), (self.guest, port), local).map_err(io::Error::other)?;
        let handle = self.sockets.add(socket);
        let connection = Connection { stream, handle, all_sent: false, all_received: false };
        self.connections.insert(token.0, connection);
        Ok(())
    }
}

impl Connection {
    /// Carries bytes both ways. Returns whether there were any.
    fn carry(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        let sent = self.send(socket);
        let received = self.receive(socket);
        sent | received | self.end(socket)
    }

    fn send(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        let mut moved = false;
        while !self.all_sent && socket.can_send() {
            let mut outcome = Ok(0);
            let _ = socket.send(|room| {
                outcome = self.stream.read(room);
                (*outcome.as_ref().unwrap_or(&0), ())
            });
            match outcome {
                Ok(0) => {
                    socket.close();
                    self.all_sent = true;
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.abort(socket),
            }
            moved = true;
        }
        moved
    }

    fn receive(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        let mut moved = false;
        while !self.all_received && socket.can_recv() {
            let mut outcome = Ok(0);
            let _ = socket.recv(|data| {
                outcome = self.stream.write(data);
                (*outcome.as_ref().unwrap_or(&0), ())
            });
            match outcome {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.abort(socket),
            }
            moved = true;
        }
        moved
    }

    /// The client is gone.
    fn abort(&mut self, socket: &mut tcp::Socket<'_>) {
        socket.abort();
        (self.all_sent, self.all_received) = (true, true);
    }

    /// Tells the client when the guest is through, or does not listen.
    fn end(&mut self, socket: &tcp::Socket<'_>) -> bool {
        let begins = matches!(socket.state(), tcp::State::SynSent | tcp::State::SynReceived);
        let ends = !self.all_received && !begins && !socket.may_recv() && !socket.can_recv();
        if ends {
            let _ = self.stream.shutdown(Shutdown::Write);
            self.all_received = true;
        }
        ends
    }

    fn lives(&self, socket: &tcp::Socket<'_>) -> bool {
        !matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait) || !self.all_received
    }
}

fn instant(time: Duration) -> Instant {
    Instant::from_micros(time.as_micros() as i64)
}
