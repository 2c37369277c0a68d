//! Pings through a mock netback: a guest with a paravirtual network card and smoltcp on it, and a host that answers.
//!
//! ```sh
//! cargo run -p xen-netfront --example ping -- [count] [file.pcap]
//! ```
//!
//! Nothing but this process is needed: no Xen, no privileges. The round-trip times are those of the machine's virtual
//! clock, on which the wire takes 100 microseconds each way. With a file name, what passed is written there for
//! Wireshark. Everything from the line "the guest" on is what a kernel does, on its own platform.

use std::error::Error;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr};
use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::DomId;
use xen_hypercall::mock::MockXen;
use xen_netfront::adapters::smoltcp::SmoltcpDevice;
use xen_netfront::mock::{HostDevice, MockNetback, MockSwitch, Options};
use xen_netfront::{FRAME_MAX, NetFront};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::MockXenstored;

const HOST: IpAddress = IpAddress::v4(10, 0, 0, 1);
const GUEST: IpAddress = IpAddress::v4(10, 0, 0, 2);
const WIRE: Duration = Duration::from_micros(100);

fn instant(time: Duration) -> Instant {
    Instant::from_micros(time.as_micros() as i64)
}

fn interface(device: &mut impl smoltcp::phy::Device, mac: [u8; 6], address: IpAddress) -> Interface {
    let mut iface = Interface::new(Config::new(EthernetAddress(mac).into()), device, Instant::ZERO);
    iface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(address, 24)).expect("room for an address"));
    iface
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let count: u16 = arguments.next().map_or(Ok(4), |count| count.parse())?;
    let file = arguments.next();

    // The machine, and its host.
    let xen = MockXen::new();
    xen_evtchn::mock::install(&xen);
    xen_gnttab::mock::install(&xen);
    let store = MockXenstored::new(&xen);
    let domain = xen.domain(DomId(1));
    store.connect(&domain);
    let switch = MockSwitch::new(&xen);
    let netback = MockNetback::new(&switch, &store, &domain, 0, Options::default());
    let mut host_device = HostDevice::new(&switch);
    let mut host = interface(&mut host_device, [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff], HOST);

    // The guest.
    let token = domain.boot()?;
    let events = EventChannels::new(&token)?;
    let grants = GrantTable::new(&token)?;
    let mut xs = Xenstore::new(&events)?;
    let deadline = xs.now() + Duration::from_secs(5);
    let card = NetFront::connect(&mut xs, &events, &grants, 0, deadline)?;
    println!("PING {HOST} from {GUEST} by vif/0, {}", card.mac());
    let mac = card.mac().0;
    let mut device = SmoltcpDevice::new(card, vec![0; FRAME_MAX], vec![0; 1514]);
    let mut guest = interface(&mut device, mac, GUEST);
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 1024]);
    let mut sockets = SocketSet::new(vec![]);
    let handle = sockets.add(icmp::Socket::new(buffer(), buffer()));
    sockets.get_mut::<icmp::Socket<'_>>(handle).bind(icmp::Endpoint::Ident(0x7e57))?;

    let mut received = 0;
    for seq_no in 0..count {
        let request = Icmpv4Repr::EchoRequest {
            ident: 0x7e57,
            seq_no,
            data: b"forty bytes of some data for the checksum",
        };
        let sent = xen.now();
        let socket = sockets.get_mut::<icmp::Socket<'_>>(handle);
        request.emit(
            &mut Icmpv4Packet::new_unchecked(socket.send(request.buffer_len(), HOST)?),
            &ChecksumCapabilities::default(),
        );
        // A second is enough for any answer.
        while xen.now() - sent < Duration::from_secs(1) {
            guest.poll(instant(xen.now()), &mut device, &mut sockets);
            device.publish()?;
            xen.run_until_idle(100);
            xen.advance(WIRE);
            host.poll(instant(xen.now()), &mut host_device, &mut SocketSet::new(vec![]));
            xen.advance(WIRE);
            xen.run_until_idle(100);
            guest.poll(instant(xen.now()), &mut device, &mut sockets);
            let socket = sockets.get_mut::<icmp::Socket<'_>>(handle);
            if !socket.can_recv() {
                continue;
            }
            let (payload, from) = socket.recv()?;
            let (packet, capabilities) =
                (Icmpv4Packet::new_checked(payload)?, ChecksumCapabilities::default());
            if let Icmpv4Repr::EchoReply { seq_no: answered, data, .. } =
                Icmpv4Repr::parse(&packet, &capabilities)?
                && answered == seq_no
            {
                let time = (xen.now() - sent).as_micros();
                println!("{} bytes from {from}: icmp_seq={answered} time={time} us", data.len() + 8);
                received += 1;
                break;
            }
        }
        xen.advance(Duration::from_secs(1));
    }
    let card = device.into_inner();
    let stats = card.stats();
    println!(
        "{count} sent, {received} received; {} frames out, {} frames in",
        stats.tx_frames, stats.rx_frames
    );
    let deadline = xs.now() + Duration::from_secs(5);
    card.close(&mut xs, deadline)?;
    if let Some(file) = file {
        std::fs::write(&file, switch.pcap())?;
        println!("what passed is in {file}");
    }
    if received != count || !netback.complaints().is_empty() {
        return Err(
            format!("answers are missing, or the backend complained: {:?}", netback.complaints()).into()
        );
    }
    Ok(())
}
