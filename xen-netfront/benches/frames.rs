//! What a frame costs on this machine, through the mocks of Xen and of the backend, whose part is in it: to compare
//! versions of this crate, not to compare it with others. `cargo bench -p xen-netfront`.
#![allow(missing_docs, reason = "criterion's macro makes a function")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use xen_evtchn::EventChannels;
use xen_gnttab::{Access, GrantTable};
use xen_hypercall::DomId;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_netfront::mock::{MockNetback, MockSwitch, Options};
use xen_netfront::{Config, FRAME_MAX, Features, FramePage, NetFront, TxMeta};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::MockXenstored;

/// Frames between two looks at the rings.
const BATCH: usize = 32;

/// A card, and what a guest needs for it, for the rest of the process.
struct Machine {
    xen: MockXen,
    switch: MockSwitch,
    grants: &'static GrantTable<MockDomain>,
    card: NetFront<'static, MockDomain>,
}

impl Machine {
    fn new(config: Config) -> Self {
        let xen = MockXen::new();
        xen_evtchn::mock::install(&xen);
        xen_gnttab::mock::install(&xen);
        let store = MockXenstored::new(&xen);
        let guest = xen.domain(DomId(1));
        store.connect(&guest);
        let switch = MockSwitch::new(&xen);
        let _ = MockNetback::new(&switch, &store, &guest, 0, Options::default());
        let token = guest.boot().unwrap();
        let events: &'static _ = Box::leak(Box::new(EventChannels::new(&token).unwrap()));
        let grants: &'static _ = Box::leak(Box::new(GrantTable::new(&token).unwrap()));
        let mut xs = Xenstore::new(events).unwrap();
        let soon = xs.now() + Duration::from_secs(5);
        let card = NetFront::connect_with(&mut xs, events, grants, 0, soon, config).unwrap();
        Self { xen, switch, grants, card }
    }

    /// To everybody on the network, or from somebody there to the card.
    fn frame(&self, len: usize, arrives: bool) -> Vec<u8> {
        let mut frame = vec![0x5a; len];
        let (to, from) = if arrives { (self.card.mac().0, [2; 6]) } else { ([0xff; 6], self.card.mac().0) };
        frame[..6].copy_from_slice(&to);
        frame[6..12].copy_from_slice(&from);
        frame
    }

    /// The backend sends what it has; returns how many frames those were.
    fn sent(&self) -> usize {
        self.xen.run_until_idle(1000);
        std::iter::from_fn(|| self.switch.receive()).count()
    }

    /// So many of these frames come by the network.
    fn arrive(&self, frame: &[u8], count: usize) {
        for _ in 0..count {
            self.switch.send(frame.to_vec());
        }
        self.xen.run_until_idle(1000);
    }
}

fn batch<'c>(c: &'c mut Criterion, name: &str, len: usize) -> BenchmarkGroup<'c, WallTime> {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Bytes((len * BATCH) as u64));
    group
}

/// Frames that are copied to shared pages.
fn send(c: &mut Criterion) {
    for len in [60, 1514] {
        let mut machine = Machine::new(Config::default());
        let frame = machine.frame(len, false);
        batch(c, "send", len).bench_function(format!("{len} bytes"), |b| {
            b.iter(|| {
                for _ in 0..BATCH {
                    machine.card.transmit(&frame).unwrap();
                }
                machine.card.publish().unwrap();
                assert_eq!(machine.sent(), BATCH);
            });
        });
    }
}

/// Frames in pages of the caller's, and one of as many bytes as there can be.
fn large(c: &mut Criterion) {
    let mut machine = Machine::new(Config::default());
    let frame = machine.frame(1514, false);
    let page = |_| {
        let mut page = machine.grants.share(DomId(0), Access::ReadOnly).unwrap();
        page.write_bytes(0, &frame).unwrap();
        FramePage::new(page, 0, 1514)
    };
    let mut pages: Vec<_> = (0..BATCH).map(page).collect();
    batch(c, "send", 1514).bench_function("1514 bytes, pages handed over", |b| {
        b.iter(|| {
            for part in &mut pages {
                part.page.write_bytes(0, &frame[..14]).unwrap();
                machine.card.transmit_pages(std::slice::from_mut(part), TxMeta::default()).unwrap();
            }
            machine.card.publish().unwrap();
            assert_eq!(machine.sent(), BATCH);
        });
    });
    let mut group = c.benchmark_group("send");
    let frame = machine.frame(FRAME_MAX, false);
    group.throughput(Throughput::Bytes(FRAME_MAX as u64));
    group.bench_function("one of 65535 bytes", |b| {
        b.iter(|| {
            machine.card.transmit(&frame).unwrap();
            machine.card.publish().unwrap();
            assert_eq!(machine.sent(), 1);
        });
    });
    group.finish();
}

/// Frames that arrive.
fn receive(c: &mut Criterion) {
    for len in [60, 1514] {
        let mut machine = Machine::new(Config::default());
        let frame = machine.frame(len, true);
        let mut buffer = [0; 4096];
        batch(c, "receive", len).bench_function(format!("{len} bytes"), |b| {
            b.iter(|| {
                machine.arrive(&frame, BATCH);
                let mut count = 0;
                while let Some(len) = machine.card.receive(&mut buffer).unwrap() {
                    black_box(&buffer[..len]);
                    count += 1;
                }
                machine.card.publish().unwrap();
                assert_eq!(count, BATCH);
            });
        });
    }
    let mut machine = Machine::new(Config { receive: Features::SCATTER_GATHER, ..Config::default() });
    let frame = machine.frame(9014, true);
    let mut buffer = vec![0; FRAME_MAX];
    let mut group = c.benchmark_group("receive");
    group.throughput(Throughput::Bytes(9014));
    group.bench_function("one of 9014 bytes", |b| {
        b.iter(|| {
            machine.arrive(&frame, 1);
            assert_eq!(machine.card.receive(&mut buffer).unwrap(), Some(9014));
            machine.card.publish().unwrap();
        });
    });
    group.finish();
}

criterion_group!(benches, send, large, receive);
criterion_main!(benches);
