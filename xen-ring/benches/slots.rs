//! Time for a slot's way there and back, one by one and in batches, with publishing and arming after each batch of 16.
#![allow(missing_docs, reason = "criterion's macro makes a function")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use xen_ring::mock::SharedPages;
use xen_ring::{Back, Front, Protocol};

struct Net;
impl Protocol for Net {
    type Request = [u32; 3];
    type Response = [u16; 2];
}

struct Blk;
impl Protocol for Blk {
    type Request = [u64; 14];
    type Response = [u64; 2];
}

const BATCH: usize = 16;

fn ends<P: Protocol>() -> (Front<P, SharedPages>, Back<P, SharedPages>) {
    let pages = SharedPages::new(1);
    (Front::init(pages.clone()).unwrap(), Back::attach(pages).unwrap())
}

fn one_by_one<P: Protocol>(
    front: &mut Front<P, SharedPages>,
    back: &mut Back<P, SharedPages>,
    entry: (P::Request, P::Response),
) {
    for _ in 0..BATCH {
        front.push(black_box(&entry.0)).unwrap();
    }
    black_box(front.publish().unwrap());
    while let Some(request) = back.pop().unwrap() {
        black_box(request);
        back.push(black_box(&entry.1)).unwrap();
    }
    black_box((back.publish().unwrap(), back.arm().unwrap()));
    while let Some(response) = front.pop().unwrap() {
        black_box(response);
    }
    black_box(front.arm().unwrap());
}

fn batches<P: Protocol>(
    front: &mut Front<P, SharedPages>,
    back: &mut Back<P, SharedPages>,
    entry: (P::Request, P::Response),
) {
    let (mut requests, mut responses) = ([entry.0; BATCH], [entry.1; BATCH]);
    front.push_batch(black_box(&requests)).unwrap();
    black_box(front.publish().unwrap());
    back.pop_batch(black_box(&mut requests)).unwrap();
    back.push_batch(black_box(&responses)).unwrap();
    black_box((back.publish().unwrap(), back.arm().unwrap()));
    front.pop_batch(black_box(&mut responses)).unwrap();
    black_box(front.arm().unwrap());
}

fn rings(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("slots");
    group.throughput(Throughput::Elements(BATCH as u64));
    let (mut front, mut back) = ends::<Net>();
    group
        .bench_function("net one by one", |b| b.iter(|| one_by_one(&mut front, &mut back, ([1; 3], [2; 2]))));
    group.bench_function("net batch", |b| b.iter(|| batches(&mut front, &mut back, ([1; 3], [2; 2]))));
    let (mut front, mut back) = ends::<Blk>();
    group.bench_function("blk one by one", |b| {
        b.iter(|| one_by_one(&mut front, &mut back, ([1; 14], [2; 2])))
    });
    group.bench_function("blk batch", |b| b.iter(|| batches(&mut front, &mut back, ([1; 14], [2; 2]))));
    group.bench_function("init of a page", |b| {
        b.iter_batched(|| SharedPages::new(1), Front::<Net, _>::init, BatchSize::SmallInput)
    });
    group.finish();
}

criterion_group!(benches, rings);
criterion_main!(benches);
