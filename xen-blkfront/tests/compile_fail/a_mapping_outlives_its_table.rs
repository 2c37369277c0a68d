//! What is mapped of another domain is borrowed from the grant table.
use xen_gnttab::{GrantRef, GrantTable};
use xen_hypercall::{DomId, GrantRoom, Platform};

fn mapped<P: Platform + GrantRoom>(table: GrantTable<P>) {
    let mut mapping = table.map::<1>(DomId(1), &[GrantRef(8)]).unwrap();
    table.close().unwrap();
    let _ = mapping.mem();
}

fn main() {}
