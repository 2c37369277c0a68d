//! The card as the stack sees it: with a gate that tells peers to wait.

use smoltcp::phy::{Device, DeviceCapabilities, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, TcpPacket};

use crate::Nic;

/// A card. While the gate is shut, each TCP segment that goes out says that there is no room for more. A peer keeps then what it wants to
/// send, and sends it as soon as it hears of room, however long that takes. What it sends to a machine that stands still is lost, and
/// sent again after a time that doubles with each try.
pub(crate) struct Gate<N> {
    pub(crate) nic: N,
    shut: Option<Checksum>,
}

/// Who fills in the checksum of a segment.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Checksum {
    Stack,
    Card,
}

impl<N: Nic> Device for Gate<N> {
    type RxToken<'a>
        = N::RxToken<'a>
    where
        N: 'a;
    type TxToken<'a>
        = Sent<N::TxToken<'a>>
    where
        N: 'a;

    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let shut = self.shut;
        self.nic.receive(now).map(|(received, to_send)| (received, Sent { token: to_send, shut }))
    }

    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        let shut = self.shut;
        self.nic.transmit(now).map(|token| Sent { token, shut })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.nic.capabilities()
    }
}

impl<N: Nic> Gate<N> {
    pub(crate) fn new(nic: N) -> Self {
        Self { nic, shut: None }
    }

    pub(crate) fn shut(&mut self) {
        let by_stack = self.nic.capabilities().checksum.tcp.tx();
        self.shut = Some(if by_stack { Checksum::Stack } else { Checksum::Card });
    }

    pub(crate) fn open(&mut self) {
        self.shut = None;
    }
}

/// A frame that goes out.
pub(crate) struct Sent<T> {
    token: T,
    shut: Option<Checksum>,
}

impl<T: TxToken> TxToken for Sent<T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Self { token, shut } = self;
        token.consume(len, |frame| {
            let result = f(frame);
            if let Some(checksum) = shut {
                let _ = say_full(frame, checksum);
            }
            result
        })
    }
}

/// Says in a segment of TCP over IPv4 that there is no room. Leaves any other frame alone.
#[cold]
fn say_full(frame: &mut [u8], checksum: Checksum) -> smoltcp::wire::Result<()> {
    let mut frame = EthernetFrame::new_checked(frame)?;
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return Ok(());
    }
    let mut packet = Ipv4Packet::new_checked(frame.payload_mut())?;
    let (from, to) = (IpAddress::Ipv4(packet.src_addr()), IpAddress::Ipv4(packet.dst_addr()));
    if packet.next_header() != IpProtocol::Tcp {
        return Ok(());
    }
    let mut segment = TcpPacket::new_checked(packet.payload_mut())?;
    segment.set_window_len(0);
    if checksum == Checksum::Stack {
        segment.fill_checksum(&from, &to);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use smoltcp::phy::{self, ChecksumCapabilities};
    use smoltcp::wire::{
        EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress, IpProtocol, Ipv4Address,
        Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
    };

    use super::{Checksum, say_full};

    const FROM: Ipv4Address = Ipv4Address::new(10, 0, 0, 2);
    const TO: Ipv4Address = Ipv4Address::new(10, 0, 0, 1);

    fn segment(checksums: &ChecksumCapabilities, protocol: IpProtocol) -> [u8; 64] {
        let mut bytes = [0; 64];
        let ethernet = EthernetRepr {
            src_addr: EthernetAddress([2; 6]),
            dst_addr: EthernetAddress([3; 6]),
            ethertype: EthernetProtocol::Ipv4,
        };
        let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
        ethernet.emit(&mut frame);
        let ip =
            Ipv4Repr { src_addr: FROM, dst_addr: TO, next_header: protocol, payload_len: 24, hop_limit: 64 };
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet, checksums);
        let tcp = TcpRepr {
            src_port: 80,
            dst_port: 5,
            control: TcpControl::None,
            seq_number: TcpSeqNumber(7),
            ack_number: Some(TcpSeqNumber(9)),
            window_len: 4000,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: b"page",
        };
        tcp.emit(&mut TcpPacket::new_unchecked(packet.payload_mut()), &FROM.into(), &TO.into(), checksums);
        bytes
    }

    fn window(bytes: &[u8]) -> (u16, bool) {
        let frame = EthernetFrame::new_checked(bytes).unwrap();
        let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
        let tcp = TcpPacket::new_checked(packet.payload()).unwrap();
        (tcp.window_len(), tcp.verify_checksum(&IpAddress::Ipv4(FROM), &IpAddress::Ipv4(TO)))
    }

    #[test]
    fn a_segment_says_that_there_is_no_room() {
        let ours = ChecksumCapabilities::default();
        let mut bytes = segment(&ours, IpProtocol::Tcp);
        assert_eq!(window(&bytes), (4000, true));
        say_full(&mut bytes, Checksum::Stack).unwrap();
        assert_eq!(window(&bytes), (0, true));
    }

    #[test]
    fn a_checksum_that_others_fill_in_is_left_to_them() {
        let mut theirs = ChecksumCapabilities::default();
        theirs.tcp = phy::Checksum::None;
        let mut bytes = segment(&theirs, IpProtocol::Tcp);
        say_full(&mut bytes, Checksum::Card).unwrap();
        let ip = &bytes[14..];
        assert_eq!(ip[20 + 14..20 + 18], [0, 0, 0, 0], "window and checksum");
    }

    #[test]
    fn other_frames_stay_as_they_are() {
        let ours = ChecksumCapabilities::default();
        let udp = segment(&ours, IpProtocol::Udp);
        let mut bytes = udp;
        say_full(&mut bytes, Checksum::Stack).unwrap();
        assert_eq!(bytes, udp);
        let mut short = [0; 20];
        assert!(say_full(&mut short, Checksum::Stack).is_ok() && short == [0; 20]);
        assert!(say_full(&mut [0; 3], Checksum::Stack).is_err());
    }
}
