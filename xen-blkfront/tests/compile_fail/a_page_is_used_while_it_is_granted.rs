//! The page that was granted is not there any more under its old name.
use xen_gnttab::{Access, GrantTable, OwnedPage};
use xen_hypercall::{DomId, Platform};

fn granted<'g, P: Platform>(table: &'g GrantTable<P>, page: OwnedPage<'g, P>) {
    let _granted = table.grant(page, DomId(0), Access::ReadWrite);
    let _ = page.bytes();
}

fn main() {}
