//! A stream to dom0 and back, by smoltcp.

use alloc::boxed::Box;
use alloc::vec;
use core::time::Duration;

use check_report::{Failure, Report, ensure};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use xen_hypercall::Wait;
use xen_netfront::FRAME_MAX;
use xen_netfront::adapters::smoltcp::SmoltcpDevice;

use super::{First, life};
use crate::place::Place;

/// What goes there, and comes back from the echo of dom0's port 7.
const BYTES: usize = 4 << 20;
const BUFFER: usize = 256 << 10;

#[inline(never)]
pub(super) fn run(place: &mut Place, first: Box<First>, report: &mut Report) {
    let buffer = |len| vec![0; len].into_boxed_slice();
    let mut device = Box::new(SmoltcpDevice::new(*first, buffer(FRAME_MAX), buffer(FRAME_MAX)));
    let before = device.front().stats();
    report.check("net/stream-to-dom0-and-back", || echo(place, &mut device));
    let first = Box::new(device.into_inner());
    let after = first.stats();
    let (sent, received) = (after.tx_gso - before.tx_gso, after.rx_gso - before.rx_gso);
    report.note(format_args!(
        "stream: {} frames out, {sent} of them large, {} in, {received} of them large",
        after.tx_frames - before.tx_frames,
        after.rx_frames - before.rx_frames
    ));
    report.check("net/stream-in-large-packets", || {
        ensure!(sent > 0 && received > 0, "{sent} out, {received} in");
        Ok(())
    });
    life::close(place, first, report, "net/close-at-last");
}

/// Byte `at` of the stream.
fn byte(at: usize) -> u8 {
    (at ^ at >> 8 ^ at >> 16) as u8
}

fn echo(
    place: &Place,
    device: &mut SmoltcpDevice<'static, crate::place::Xen, Box<[u8]>, 3>,
) -> Result<(), Failure> {
    let now = || Instant::from_micros(place.kernel.now().as_micros() as i64);
    let mac = EthernetAddress(device.front().mac().0);
    let mut iface = Interface::new(Config::new(mac.into()), device, now());
    iface.update_ip_addrs(|addresses| {
        let _ = addresses.push(IpCidr::new(IpAddress::v4(10, 0, 0, 2), 24));
    });
    let mut sockets = SocketSet::new(vec![]);
    let buffer = || SocketBuffer::new(vec![0; BUFFER]);
    let handle = sockets.add(Socket::new(buffer(), buffer()));
    sockets
        .get_mut::<Socket<'_>>(handle)
        .connect(iface.context(), (IpAddress::v4(10, 0, 0, 1), 7), 49152)
        .map_err(|error| Failure(alloc::format!("{error:?}")))?;
    let (mut sent, mut received) = (0, 0);
    let deadline = place.soon();
    while received < BYTES {
        let seen = place.events.seq();
        iface.poll(now(), device, &mut sockets);
        let socket = sockets.get_mut::<Socket<'_>>(handle);
        ensure!(socket.state() != State::Closed, "dom0 does not listen at port 7, or hung up");
        if socket.can_send() && sent < BYTES {
            let more = socket.send(|room| {
                let count = room.len().min(BYTES - sent);
                (sent..).zip(room.iter_mut().take(count)).for_each(|(at, byte_)| *byte_ = byte(at));
                (count, count)
            });
            sent += more.map_err(|error| Failure(alloc::format!("{error:?}")))?;
        }
        let mut right = true;
        while socket.can_recv() {
            let more = socket.recv(|bytes| {
                right &= (received..).zip(bytes.iter()).all(|(at, got)| *got == byte(at));
                (bytes.len(), bytes.len())
            });
            received += more.map_err(|error| Failure(alloc::format!("{error:?}")))?;
        }
        ensure!(right, "another byte than was sent, before {received}");
        iface.poll(now(), device, &mut sockets);
        device.publish()?;
        ensure!(place.kernel.now() < deadline, "{sent} bytes sent, {received} received");
        if !device.front_mut().arm()? {
            let delay = iface.poll_delay(now(), &sockets).map_or(50_000, |delay| delay.total_micros());
            place.events.wait_since(seen, Some(place.kernel.now() + Duration::from_micros(delay)));
        }
    }
    Ok(())
}
