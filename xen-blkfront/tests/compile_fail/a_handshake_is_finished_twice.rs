//! The end of a handshake takes what was begun.
use core::time::Duration;

use xen_blkfront::{BlkFront, Config};
use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::{Platform, Wait};
use xen_xenstore::Xenstore;

fn twice<'x, P: Platform + Wait>(
    xs: &mut Xenstore<'x, P>,
    events: &'x EventChannels<P>,
    grants: &'x GrantTable<P>,
) {
    let disk = BlkFront::begin(xs, events, grants, 51712, Duration::MAX, Config::default()).unwrap();
    let _ = disk.finish(xs, Duration::MAX);
    let _ = disk.finish(xs, Duration::MAX);
}

fn main() {}
