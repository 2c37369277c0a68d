//! Ending a grant takes the page.
use xen_gnttab::GrantedPage;
use xen_hypercall::Platform;

fn ended<P: Platform>(mut page: GrantedPage<'_, P>) {
    let _ = page.end();
    let _ = page.mem();
}

fn main() {}
