//! The network: addresses, and the web server's connections.

use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;
use core::time::Duration;

use smoltcp::iface::{
    Config as IfaceConfig, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet,
};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr};

use crate::announce;
use crate::config::Config;
use crate::gate::Gate;
use crate::http::{Connection, Figures, Server};
use crate::report::Report;
use crate::slots::{SERVED, Slots};
use crate::{Context, Machine, Network, Nic};

/// No peer waits longer before it tries again: Linux' `TCP_RTO_MAX`.
const LONGEST_RETRY: Duration = Duration::from_secs(120);
/// As far as the stack's clock is set forward at once: beyond all timers of data that is not acknowledged, but those that were put off again
/// and again, and not so far that the stack forgets neighbours of whom it has heard within the last twenty seconds.
const AHEAD: Duration = Duration::from_secs(40);

/// As long as the stack puts an acknowledgement off.
const PUT_OFF: Duration = Duration::from_millis(10);
/// How long after a peer was told that there is no room it is told of some, at the least.
const NO_ROOM: smoltcp::time::Duration = smoltcp::time::Duration::from_millis(1);

/// The network interface and everything on it.
pub(crate) struct Net<N> {
    card: Gate<N>,
    iface: Interface,
    sockets: SocketSet<'static>,
    dhcp: Option<SocketHandle>,
    slots: Slots,
    figures: Figures,
    /// The network has not been told yet where the machine is now.
    moved: bool,
    /// The stack's clock is ahead of the machine's by so much.
    ahead: Duration,
}

impl<N> fmt::Debug for Net<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("addresses", &self.iface.ip_addrs()).finish_non_exhaustive()
    }
}

impl<N: Nic> Network<N> for Net<N> {
    fn nic(&mut self) -> &mut N {
        &mut self.card.nic
    }

    fn take_in(&mut self, now: Duration) {
        // Nobody waits for an acknowledgement that the stack has put off.
        self.ahead += PUT_OFF;
        let time = self.time(now);
        self.receive(time);
        self.keep_off(time);
    }
}

impl<N: Nic> Net<N> {
    /// Brings the interface up with the configured address, or asks DHCP for one.
    pub(crate) fn new(nic: N, config: &Config, now: Duration) -> Self {
        let mut settings = IfaceConfig::new(EthernetAddress(nic.mac()).into());
        settings.random_seed = nic.mac().iter().fold(now.as_nanos() as u64, |seed, byte| {
            (seed ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        });
        let mut card = Gate::new(nic);
        let mut iface = Interface::new(settings, &mut card, instant(now));
        let mut sockets = SocketSet::new(Vec::new());
        let dhcp = match config.address {
            Some((address, prefix)) => {
                set_address(&mut iface, Ipv4Cidr::new(address, prefix), config.gateway);
                None
            }
            None => {
                log::info!("net: no address given; asking DHCP");
                Some(sockets.add(dhcpv4::Socket::new()))
            }
        };
        let mut slots = Slots::default();
        slots.prepare(&mut sockets);
        slots.listen(&mut sockets);
        Self {
            card,
            iface,
            sockets,
            dhcp,
            slots,
            figures: Figures::default(),
            moved: false,
            ahead: Duration::ZERO,
        }
    }

    /// A round took so long, in which nobody looked at what peers have sent.
    pub(crate) fn forgive(&mut self, time: Duration) {
        // Less makes no difference, and is asked for in every round.
        if time >= Duration::from_secs(1) {
            self.slots.connections.iter_mut().for_each(|connection| connection.wait_longer(time));
        }
    }

    /// Before a suspend: what peers have asked for is taken from the disk as long as there is one, and sent when the machine goes on.
    /// Returns false while there is nobody who could be answered then.
    pub(crate) fn prepare<M: Machine<Nic = N>>(&mut self, now: Duration, context: &Context<'_, M>) -> bool {
        let time = self.time(now);
        self.receive(time);
        // A head, and the answer to it.
        self.serve(now, context, true);
        self.serve(now, context, true);
        let mut active = self.slots.connections.iter().filter(|connection| connection.is_active()).peekable();
        active.peek().is_none() || active.any(Connection::has_answer)
    }

    /// Tells all peers that there is no room for what they may want to send. They hear of some when the machine goes on.
    fn keep_off(&mut self, now: Instant) {
        self.keep_alive(Some(NO_ROOM));
        self.card.shut();
        self.send(now);
        self.card.nic.flush();
        self.card.open();
        self.keep_alive(None);
    }

    /// Has the stack say something to every peer that it would have nothing to say to.
    fn keep_alive(&mut self, interval: Option<smoltcp::time::Duration>) {
        for connection in self.slots.connections.iter().filter(|connection| connection.is_active()) {
            self.sockets.get_mut::<tcp::Socket<'_>>(connection.handle).set_keep_alive(interval);
        }
    }

    /// The machine goes on after a suspend. It was busy with that for the time `ran`, and did not run for the time `away`.
    ///
    /// A peer without an answer has waited longer before each retry, the last time for about as long as the machine was away. Its
    /// connection is kept for as long.
    pub(crate) fn resume(&mut self, ran: Duration, away: Duration) {
        self.forgive(ran + away.min(LONGEST_RETRY));
    }

    /// Moves packets and serves connections once; true if there is more to do at once.
    pub(crate) fn turn<M: Machine<Nic = N>>(&mut self, now: Duration, context: &Context<'_, M>) -> bool {
        let time = self.follow_card(now);
        self.receive(time);
        self.lease();
        let busy = self.serve(now, context, false);
        // What the connections said goes out in the same round, and the other side is told once.
        let delay = self.iface.poll_delay(time, &self.sockets);
        if busy || delay == Some(smoltcp::time::Duration::ZERO) {
            self.send(time);
        }
        self.card.nic.flush();
        self.slots.prepare(&mut self.sockets);
        busy
    }

    /// Asks the card for an event; returns when to come back at the latest (now: at once).
    pub(crate) fn rest(&mut self, now: Duration) -> Option<Duration> {
        let ready = self.card.nic.arm();
        let time = self.follow_card(now);
        if ready {
            return Some(now);
        }
        let stack = self.iface.poll_delay(time, &self.sockets);
        // What is due and was not sent found no room. The card has an event when there is some.
        let full = self.card.nic.transmit(time).is_none();
        let stack = stack.filter(|delay| !full || *delay > smoltcp::time::Duration::ZERO);
        let stack = stack.map(|d| now + Duration::from_micros(d.total_micros()));
        let stalled = self.slots.connections.iter().filter_map(Connection::deadline).min();
        stack.into_iter().chain(stalled).min()
    }

    /// Tells the network and all peers if the machine is at another place now. Returns the time by the stack's clock.
    fn follow_card(&mut self, now: Duration) -> Instant {
        if self.card.nic.has_moved() {
            self.moved = true;
            // What was under way is lost. All that is not acknowledged is due again.
            self.ahead += AHEAD;
        }
        let time = self.time(now);
        if self.moved && announce::say_where_we_are(&mut self.card.nic, &self.iface, time) {
            self.moved = false;
            self.card.nic.flush();
        }
        time
    }

    /// The time by the stack's clock.
    fn time(&self, now: Duration) -> Instant {
        instant(now + self.ahead)
    }

    /// Takes in what has arrived, and sends what that asks for. A connection that comes leaves the next one a place.
    fn receive(&mut self, now: Instant) {
        let Self { card, iface, sockets, slots, .. } = self;
        iface.poll_maintenance(now);
        loop {
            match iface.poll_ingress_single(now, card, sockets) {
                PollIngressSingleResult::None => break,
                PollIngressSingleResult::PacketProcessed => {}
                PollIngressSingleResult::SocketStateChanged => slots.listen(sockets),
            }
        }
        // What the stack answers by itself does not wait for the server.
        card.nic.flush();
        self.send(now);
    }

    fn send(&mut self, now: Instant) {
        // Ends: what there is to send is in buffers that nobody fills meanwhile.
        while self.iface.poll_egress(now, &mut self.card, &mut self.sockets) != PollResult::None {}
    }

    /// Cuts the connections that move a file to or from a disk that is gone.
    pub(crate) fn drop_transfers<M: Machine<Nic = N>>(&mut self, context: &Context<'_, M>) {
        for connection in &mut self.slots.connections {
            if connection.moves_file() {
                connection.cut(self.sockets.get_mut(connection.handle), context);
            }
        }
    }

    /// Ends all connections, for nobody is to wait for a machine that is gone, and the card.
    pub(crate) fn shut<M: Machine<Nic = N>>(mut self, context: &Context<'_, M>) {
        let time = self.time(context.machine.now());
        for connection in &mut self.slots.connections {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(connection.handle);
            connection.cut(socket, context);
        }
        self.iface.poll(time, &mut self.card, &mut self.sockets);
        self.card.nic.flush();
        self.card.nic.close();
    }

    /// Tells of the card, the addresses and the server.
    pub(crate) fn report(&self, to: &mut dyn Report) {
        let active = self.slots.connections.iter().filter(|c| c.is_active()).count();
        report(&self.card.nic, &self.iface, &self.figures, active, to);
    }

    fn serve<M: Machine<Nic = N>>(&mut self, now: Duration, context: &Context<'_, M>, holds: bool) -> bool {
        let Self { card: Gate { nic, .. }, iface, sockets, slots, figures, .. } = self;
        let mut active = slots.connections.iter().filter(|c| c.is_active()).count();
        let mut busy = false;
        let awaits_files = context.awaits_files();
        for connection in &mut slots.connections {
            let was_active = connection.is_active();
            let server = Server {
                context,
                nic,
                iface,
                figures,
                now,
                active,
                full: active >= SERVED,
                awaits_files,
                holds,
            };
            busy |= connection.serve(sockets.get_mut(connection.handle), &server);
            active = active + usize::from(connection.is_active()) - usize::from(was_active);
        }
        slots.trim(sockets);
        slots.listen(sockets);
        busy
    }

    /// Takes over what DHCP gave or took away.
    fn lease(&mut self) {
        let Some(handle) = self.dhcp else { return };
        match self.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            Some(dhcpv4::Event::Configured(lease)) => {
                set_address(&mut self.iface, lease.address, lease.router);
            }
            Some(dhcpv4::Event::Deconfigured) => {
                // It also says so once at the start, when there was none before.
                if !self.iface.ip_addrs().is_empty() {
                    log::warn!("net: no address from DHCP any more");
                }
                self.iface.update_ip_addrs(|addresses| addresses.clear());
                self.iface.routes_mut().remove_default_ipv4_route();
            }
            None => {}
        }
    }
}

fn report<N: Nic>(nic: &N, iface: &Interface, figures: &Figures, active: usize, to: &mut dyn Report) {
    nic.report(to);
    match iface.ip_addrs().first() {
        Some(address) => to.fact("address", address),
        None => to.fact("address", &"none yet"),
    }
    to.section("Web server");
    to.figure("http_open_connections", active as u64);
    figures.report(to);
}

/// Everything at once, for the status page.
pub(super) fn report_all<M: Machine>(server: &Server<'_, M>, to: &mut dyn Report) {
    server.context.machine.report(to);
    report(server.nic, server.iface, server.figures, server.active, to);
    if let Some(files) = server.context.files {
        files.report(to);
    }
}

fn set_address(iface: &mut Interface, address: Ipv4Cidr, gateway: Option<Ipv4Addr>) {
    iface.update_ip_addrs(|addresses| {
        addresses.clear();
        let _ = addresses.push(IpCidr::Ipv4(address));
    });
    match gateway.map(|gateway| iface.routes_mut().add_default_ipv4_route(gateway)) {
        None => log::info!("net: address {address}, no gateway"),
        Some(Ok(_)) => {
            log::info!("net: address {address}, gateway {}", gateway.unwrap_or(Ipv4Addr::UNSPECIFIED))
        }
        Some(Err(_)) => log::warn!("net: address {address}; no room for a gateway"),
    }
}

fn instant(time: Duration) -> Instant {
    Instant::from_micros(time.as_micros() as i64)
}
