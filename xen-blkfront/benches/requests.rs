//! What a request costs on this machine, through the mocks of Xen and of the backend, whose part is in it: to compare
//! versions of this crate, not to compare it with others. `cargo bench -p xen-blkfront`.
#![allow(missing_docs, reason = "criterion's macro makes a function")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use xen_blkfront::mock::{MockBlkback, Options};
use xen_blkfront::{BlkFront, Config, Piece};
use xen_evtchn::EventChannels;
use xen_gnttab::{Access, GrantTable};
use xen_hypercall::DomId;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::MockXenstored;

const SECTORS: u64 = 16384;

/// A disk of 8 MiB, and what a guest needs for it, for the rest of the process.
fn disk() -> (&'static GrantTable<MockDomain>, BlkFront<'static, MockDomain>) {
    let xen = MockXen::new();
    xen_evtchn::mock::install(&xen);
    xen_gnttab::mock::install(&xen);
    let store = MockXenstored::new(&xen);
    let guest = xen.domain(DomId(1));
    store.connect(&guest);
    let _ = MockBlkback::new(&store, &guest, 51712, Options { sectors: SECTORS, ..Options::default() });
    let token = guest.boot().unwrap();
    let events = Box::leak(Box::new(EventChannels::new(&token).unwrap()));
    let grants = Box::leak(Box::new(GrantTable::new(&token).unwrap()));
    let mut xs = Xenstore::new(events).unwrap();
    let deadline = xs.now() + Duration::from_secs(5);
    let config = Config { pages: 600, ..Config::default() };
    let disk = BlkFront::connect_with(&mut xs, events, grants, 51712, deadline, config).unwrap();
    (grants, disk)
}

/// Reads of 4 KiB all over the disk, so many at once.
fn scattered(c: &mut Criterion) {
    let mut group = c.benchmark_group("read 4 KiB");
    for depth in [1, 32_u64] {
        let (_, mut disk) = disk();
        let mut out = [0; 4096];
        let mut place = 0_u64;
        group.throughput(Throughput::Elements(depth));
        group.bench_function(format!("depth {depth}"), |b| {
            b.iter(|| {
                let mut tickets = [None; 32];
                for ticket in tickets.iter_mut().take(depth as usize) {
                    place = place.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    *ticket = Some(disk.submit_read((place >> 40) % (SECTORS / 8) * 8, 8).unwrap());
                }
                for ticket in tickets.into_iter().flatten() {
                    disk.wait(ticket, &mut out).unwrap();
                }
                black_box(&out);
            });
        });
    }
    group.finish();
}

/// Whole mebibytes, through pages of the disk's and back.
fn streams(c: &mut Criterion) {
    let mut group = c.benchmark_group("1 MiB");
    let (_, mut disk) = disk();
    let mut data = vec![7; 1 << 20];
    group.throughput(Throughput::Bytes(1 << 20));
    group.bench_function("write", |b| b.iter(|| disk.write(2048, &data).unwrap()));
    group.bench_function("read", |b| b.iter(|| disk.read(2048, &mut data).unwrap()));
    group.finish();
}

/// The same out of pages of the caller's.
fn lent(c: &mut Criterion) {
    let mut group = c.benchmark_group("1 MiB, lent");
    let (grants, mut disk) = disk();
    let share = || grants.share(disk.backend_id(), Access::ReadWrite).unwrap();
    let mut pieces: Vec<_> = (0..256).map(|_| Some(Piece::whole(share()))).collect();
    group.throughput(Throughput::Bytes(1 << 20));
    group.bench_function("write", |b| {
        b.iter(|| {
            let ticket = disk.submit_write_from(2048, &mut pieces).unwrap();
            disk.publish().unwrap();
            loop {
                disk.poll().unwrap();
                if let Some(result) = disk.take_pages(ticket, &mut pieces) {
                    break result.unwrap();
                }
                grants.platform().xen().step();
            }
        });
    });
    group.finish();
}

criterion_group!(benches, scattered, streams, lent);
criterion_main!(benches);
