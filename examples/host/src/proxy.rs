//! Connections to a port of this machine, carried on to the guest by a TCP stack at the switch's host port.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::time::Duration;

use anyhow::{Context, Result};
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};
use xen_netfront::mock::MockSwitch;

const LISTENER: Token = Token(1);
const FIRST_CONNECTION: usize = 2;
const MAC: EthernetAddress = EthernetAddress([0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
const HTTP: u16 = 80;
const BUFFER: usize = 64 * 1024;

/// The host's stack.
pub(crate) struct Proxy {
    device: HostPort,
    iface: Interface,
    sockets: SocketSet<'static>,
    listener: TcpListener,
    connections: BTreeMap<usize, Connection>,
    next: usize,
    guest: Ipv4Addr,
}

struct Connection {
    stream: TcpStream,
    handle: SocketHandle,
    /// Nothing more comes from the client; nothing more goes to it.
    ends: (bool, bool),
}

impl Proxy {
    /// Listens on a port of 127.0.0.1.
    pub(crate) fn new(switch: MockSwitch, port: u16, guest: Ipv4Addr, registry: &Registry) -> Result<Self> {
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let mut listener = TcpListener::bind(address)
            .with_context(|| format!("port {port} is in use; choose another by --port"))?;
        registry
            .register(&mut listener, LISTENER, Interest::READABLE)
            .context("cannot wait for connections")?;
        let mut device = HostPort(switch);
        let mut iface = Interface::new(Config::new(MAC.into()), &mut device, Instant::ZERO);
        let [a, b, c, d] = guest.octets();
        // Any other address of the same network will do for the host.
        let host = Ipv4Addr::new(a, b, c, if d == 1 { 254 } else { 1 });
        iface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(host.into(), 24));
        });
        let (sockets, connections) = (SocketSet::new(Vec::new()), BTreeMap::new());
        Ok(Self { device, iface, sockets, listener, connections, next: FIRST_CONNECTION, guest })
    }

    /// When the stack has to be looked at again, if nothing moves.
    pub(crate) fn delay(&mut self, now: Duration) -> Option<Duration> {
        let delay = self.iface.poll_delay(instant(now), &self.sockets)?;
        Some(Duration::from_micros(delay.total_micros()))
    }

    /// Moves what can be moved at once; returns whether that was anything.
    pub(crate) fn turn(&mut self, now: Duration, registry: &Registry) -> bool {
        use smoltcp::iface::PollResult;
        let mut moved = self.accept(registry);
        let polled = self.iface.poll(instant(now), &mut self.device, &mut self.sockets);
        moved |= polled == PollResult::SocketStateChanged;
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
            self.iface.poll(instant(now), &mut self.device, &mut self.sockets);
        }
        moved
    }

    fn accept(&mut self, registry: &Registry) -> bool {
        let mut moved = false;
        while let Ok((mut stream, _)) = self.listener.accept() {
            moved = true;
            let number = self.next;
            self.next += 1;
            let interest = Interest::READABLE | Interest::WRITABLE;
            if registry.register(&mut stream, Token(number), interest).is_err() {
                continue;
            }
            let _ = stream.set_nodelay(true);
            let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
            let mut socket = tcp::Socket::new(buffer(), buffer());
            socket.set_nagle_enabled(false);
            let local = 49152 + (number % 16384) as u16;
            if socket.connect(self.iface.context(), (self.guest, HTTP), local).is_ok() {
                let handle = self.sockets.add(socket);
                self.connections.insert(number, Connection { stream, handle, ends: (false, false) });
            }
        }
        moved
    }
}

impl Connection {
    fn carry(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        let mut moved = false;
        while !self.ends.0 && socket.can_send() {
            let mut outcome = Ok(0);
            let _ = socket.send(|room| {
                outcome = self.stream.read(room);
                let read = *outcome.as_ref().unwrap_or(&0);
                (read, ())
            });
            match outcome {
                Ok(0) => {
                    socket.close();
                    self.ends.0 = true;
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    socket.abort();
                    self.ends = (true, true);
                }
            }
            moved = true;
        }
        while !self.ends.1 && socket.can_recv() {
            let mut outcome = Ok(0);
            let _ = socket.recv(|data| {
                outcome = self.stream.write(data);
                let written = *outcome.as_ref().unwrap_or(&0);
                (written, ())
            });
            match outcome {
                Ok(_) => moved = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    socket.abort();
                    self.ends = (true, true);
                    moved = true;
                }
            }
        }
        // The guest is through, or was never there.
        let over =
            !socket.may_recv() && !matches!(socket.state(), tcp::State::SynSent | tcp::State::SynReceived);
        if !self.ends.1 && over && !socket.can_recv() {
            let _ = self.stream.shutdown(Shutdown::Write);
            self.ends.1 = true;
            moved = true;
        }
        moved
    }

    fn lives(&self, socket: &tcp::Socket<'_>) -> bool {
        !matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait) || !self.ends.1
    }
}

fn instant(time: Duration) -> Instant {
    Instant::from_micros(time.as_micros() as i64)
}

/// The switch's port for the host, as smoltcp wants it.
struct HostPort(MockSwitch);

struct Received(Vec<u8>);
struct ToSend<'a>(&'a MockSwitch);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.send(frame);
        result
    }
}

impl Device for HostPort {
    type RxToken<'a> = Received;
    type TxToken<'a> = ToSend<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, ToSend<'_>)> {
        // A host's stack takes a large packet as it is; the checksum is the switch's word.
        let frame = self.0.receive()?;
        Some((Received(frame.bytes), ToSend(&self.0)))
    }

    fn transmit(&mut self, _: Instant) -> Option<ToSend<'_>> {
        Some(ToSend(&self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        use smoltcp::phy::Checksum;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}
