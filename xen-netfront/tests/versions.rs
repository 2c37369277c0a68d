//! A stack of each version of smoltcp, each by the place of a card, talk to each other, and sleep in between.
#![cfg(all(feature = "mock", feature = "smoltcp-v0-13", feature = "smoltcp-v0-14"))]

mod common;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

use common::{Machine, bytes};
use xen_netfront::adapters::smoltcp::SmoltcpDevice;
use xen_netfront::mock::{MockNetback, Options};
use xen_netfront::{Card, Config, Error, FRAME_MAX, Features, Mac, NetFront};
use xen_xenstore::Xenstore;

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

const MACS: [[u8; 6]; 2] = [[0x00, 0x16, 0x3e, 0, 0, 1], [0x00, 0x16, 0x3e, 0, 0, 2]];

/// A task with a stack of its own on a card, that sends what it has and receives as much.
macro_rules! peer {
    ($name:ident, $smoltcp:ident) => {
        async fn $name(card: &Card<'_, xen_hypercall::mock::MockDomain>, index: u8, data: &[u8]) -> Vec<u8> {
            use $smoltcp::iface::{Config, Interface, SocketSet};
            use $smoltcp::socket::tcp::{Socket, SocketBuffer};
            use $smoltcp::time::Instant;
            use $smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

            let mut device = SmoltcpDevice::on(card, vec![0; FRAME_MAX], vec![0; 1514]);
            let mut config = Config::new(EthernetAddress(MACS[usize::from(index)]).into());
            config.random_seed = index.into();
            let mut iface = Interface::new(config, &mut device, Instant::ZERO);
            iface.update_ip_addrs(|addresses| {
                addresses.push(IpCidr::new(IpAddress::v4(10, 0, 0, index + 1), 24)).unwrap();
            });
            let buffer = || SocketBuffer::new(vec![0; 30_000]);
            let mut sockets = SocketSet::new(Vec::new());
            let mut socket = Socket::new(buffer(), buffer());
            // Nothing is lost, and time stands still.
            socket.set_ack_delay(None);
            let socket = sockets.add(socket);
            if index == 0 {
                sockets.get_mut::<Socket<'_>>(socket).listen(80).unwrap();
            } else {
                let there = (IpAddress::v4(10, 0, 0, 1), 80);
                sockets.get_mut::<Socket<'_>>(socket).connect(iface.context(), there, 1000).unwrap();
            }
            let (mut out, mut received, mut up) = (data, Vec::new(), false);
            loop {
                let at = sockets.get_mut::<Socket<'_>>(socket);
                if at.can_send() && !out.is_empty() {
                    out = &out[at.send_slice(out).unwrap()..];
                }
                while at.can_recv() {
                    let take = |data: &mut [u8]| {
                        received.extend_from_slice(data);
                        (data.len(), ())
                    };
                    at.recv(take).unwrap();
                }
                if received.len() == data.len() && out.is_empty() && at.send_queue() == 0 {
                    let _ = device.publish();
                    return received;
                }
                let _ = iface.poll(Instant::ZERO, &mut device, &mut sockets);
                let at = sockets.get_mut::<Socket<'_>>(socket);
                let done = out.is_empty() && at.send_queue() == 0 && received.len() == data.len();
                if !done && !at.can_recv() && (out.is_empty() || !at.can_send()) {
                    match device.ready(up).await {
                        Ok(now) => up = now,
                        Err(error) => assert_eq!(error, Error::Closed),
                    }
                }
            }
        }
    };
}

peer!(of_0_13, smoltcp_v0_13);
peer!(of_0_14, smoltcp);

#[test]
fn stacks_of_both_versions_talk_and_sleep_while_there_is_nothing_to_do() {
    for tx_pages in [256, 24] {
        let machine = Machine::new();
        let backs = [0, 1].map(|index| {
            let options = Options { mac: Mac(MACS[index as usize]), ..Options::default() };
            MockNetback::new(&machine.switch, &machine.store, &machine.guest, index, options)
        });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let config = Config { receive: Features::all(), tx_pages, ..Config::default() };
        let cards = [0, 1].map(|index| {
            let front: NetFront<'_, _> = NetFront::connect_with(
                &mut xs,
                &machine.events,
                &machine.grants,
                index,
                machine.soon(),
                config,
            )
            .unwrap();
            Card::from(front)
        });
        let data = bytes(300_000);
        let first = pin!(of_0_13(&cards[0], 0, &data));
        let second = pin!(of_0_14(&cards[1], 1, &data));
        let (mut first, mut second) = (first, second);
        let wakers = [(); 2].map(|()| Arc::new(Woken(AtomicBool::new(true))));
        let (mut one, mut other) = (None, None);
        let mut polls = 0;
        while one.is_none() || other.is_none() {
            polls += 1;
            assert!(
                polls < 20_000,
                "{} and {} of a stream",
                cards[0].stats().tx_bytes,
                cards[1].stats().tx_bytes
            );
            let woken = wakers.each_ref().map(|waker| waker.0.swap(false, SeqCst));
            let contexts = wakers.each_ref().map(|waker| Waker::from(waker.clone()));
            if woken[0] && one.is_none() {
                if let Poll::Ready(all) = first.as_mut().poll(&mut Context::from_waker(&contexts[0])) {
                    one = Some(all);
                }
            }
            if woken[1] && other.is_none() {
                if let Poll::Ready(all) = second.as_mut().poll(&mut Context::from_waker(&contexts[1])) {
                    other = Some(all);
                }
            }
            machine.run();
        }
        assert!(one.unwrap() == data && other.unwrap() == data);
        assert!(polls < 6_000, "{polls} polls");
        assert!(backs.iter().all(|back| back.complaints().is_empty()));
    }
}
