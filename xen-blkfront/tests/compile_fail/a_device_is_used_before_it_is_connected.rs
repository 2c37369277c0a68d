//! A disk whose handshake is under way has nothing to read from.
use core::time::Duration;

use xen_blkfront::{BlkFront, Config};
use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::{Platform, Wait};
use xen_xenstore::Xenstore;

fn early<'x, P: Platform + Wait>(
    xs: &mut Xenstore<'x, P>,
    events: &'x EventChannels<P>,
    grants: &'x GrantTable<P>,
) {
    let mut disk = BlkFront::begin(xs, events, grants, 51712, Duration::MAX, Config::default()).unwrap();
    let _ = disk.submit_read(0, 1);
}

fn main() {}
