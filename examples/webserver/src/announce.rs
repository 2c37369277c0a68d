//! A word to the network about where the machine is.

use smoltcp::iface::Interface;
use smoltcp::phy::TxToken;
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
};

use crate::Nic;

/// Says that the machine is here, by a gratuitous ARP request (RFC 5227, section 3) for its address, so that bridges and switches
/// send what is for it to this port. Returns false when the card takes nothing now.
pub(crate) fn say_where_we_are(nic: &mut impl Nic, iface: &Interface, now: Instant) -> bool {
    let Some(address) = iface.ipv4_addr() else { return true };
    let mac = EthernetAddress(nic.mac());
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: mac,
        source_protocol_addr: address,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: address,
    };
    let ethernet = EthernetRepr {
        src_addr: mac,
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Arp,
    };
    let Some(token) = nic.transmit(now) else { return false };
    token.consume(EthernetFrame::<&[u8]>::buffer_len(arp.buffer_len()), |buffer| {
        let mut frame = EthernetFrame::new_unchecked(buffer);
        ethernet.emit(&mut frame);
        arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    });
    true
}
