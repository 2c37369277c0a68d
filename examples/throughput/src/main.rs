//! How much the drivers and their mocks move in a second of this machine: a guest, its card and its disk, no threads.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xen_blkfront::BlkFront;
use xen_blkfront::mock::{MockBlkback, Options as DiskOptions};
use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::DomId;
use xen_hypercall::mock::MockXen;
use xen_netfront::mock::{MockNetback, MockSwitch, Options as NicOptions};
use xen_netfront::{FRAME_MAX, NetFront};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::MockXenstored;

const FRAMES: usize = 50_000;
const BATCH: usize = 64;
const REQUESTS: usize = 20_000;

fn main() -> Result<()> {
    let xen = MockXen::new();
    xen_evtchn::mock::install(&xen);
    xen_gnttab::mock::install(&xen);
    let store = MockXenstored::new(&xen);
    let guest = xen.domain(DomId(1));
    store.connect(&guest);
    let switch = MockSwitch::new(&xen);
    let _nic = MockNetback::new(&switch, &store, &guest, 0, NicOptions::default());
    let disk =
        MockBlkback::new(&store, &guest, 51712, DiskOptions { sectors: 65536, ..DiskOptions::default() });
    disk.load(&[0x5A; 4096]);

    let token = guest.boot()?;
    let events = EventChannels::new(&token)?;
    let grants = GrantTable::new(&token)?;
    let mut xs = Xenstore::new(&events)?;
    let soon = xs.now() + Duration::from_secs(5);
    let mut card = NetFront::connect(&mut xs, &events, &grants, 0, soon)?;
    let mut disk = BlkFront::connect_first(&mut xs, &events, &grants, soon)?;

    for size in [60, 1514] {
        let mut frame = vec![0xA5; size];
        frame[..6].fill(0xFF);
        frame[6..12].copy_from_slice(&card.mac().0);
        let start = Instant::now();
        let mut arrived = 0;
        for _ in 0..FRAMES / BATCH {
            for _ in 0..BATCH {
                card.transmit(&frame)?;
            }
            card.publish()?;
            xen.run_until_idle(100);
            while switch.receive().is_some() {
                arrived += 1;
            }
        }
        ensure!(arrived == FRAMES / BATCH * BATCH, "{arrived} of {FRAMES} frames arrived");
        report("sent", size, arrived, start);
        let start = Instant::now();
        let mut buffer = [0; FRAME_MAX];
        let mut arrived = 0;
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        for _ in 0..FRAMES / BATCH {
            for _ in 0..BATCH {
                switch.send(frame.clone());
            }
            xen.run_until_idle(100);
            while card.receive(&mut buffer)?.is_some() {
                arrived += 1;
            }
            card.publish()?;
        }
        ensure!(arrived == FRAMES / BATCH * BATCH, "{arrived} of {FRAMES} frames were received");
        report("received", size, arrived, start);
    }
    let mut block = [0; 4096];
    let start = Instant::now();
    for number in 0..REQUESTS as u64 {
        disk.read(number * 8 % 65536, &mut block)?;
    }
    requests("read, one at a time", start);
    let start = Instant::now();
    for number in 0..REQUESTS as u64 {
        disk.write(number * 8 % 65536, &block)?;
    }
    requests("written, one at a time", start);
    Ok(())
}

fn report(what: &str, size: usize, frames: usize, start: Instant) {
    let rate = frames as f64 / start.elapsed().as_secs_f64();
    println!("  frames of {size:>4} bytes {what:<12} {rate:>10.0} per second");
}

fn requests(what: &str, start: Instant) {
    let rate = REQUESTS as f64 / start.elapsed().as_secs_f64();
    println!("  4 KiB {what:<26} {rate:>10.0} per second");
}
