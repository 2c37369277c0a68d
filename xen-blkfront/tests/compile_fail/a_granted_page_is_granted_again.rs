//! A page has one grant.
use xen_gnttab::{Access, GrantTable, GrantedPage};
use xen_hypercall::{DomId, Platform};

fn again<'g, P: Platform>(table: &'g GrantTable<P>, page: GrantedPage<'g, P>) {
    let _ = table.grant(page, DomId(7), Access::ReadOnly);
}

fn main() {}
