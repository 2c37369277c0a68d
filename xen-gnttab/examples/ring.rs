//! Two guests on a mock machine talk through memory that one of them grants: a ring of two pages on which the back end
//! answers each number with its square.
//!
//! `cargo run -p xen-gnttab --features mock --example ring`

use std::error::Error;

use xen_gnttab::{Access, GrantRef, GrantTable, mock};
use xen_hypercall::DomId;
use xen_hypercall::mock::MockXen;
use xen_ring::{Back, Front, Protocol};

/// Numbers there and back.
struct Squares;

impl Protocol for Squares {
    type Request = u32;
    type Response = u32;
}

fn main() -> Result<(), Box<dyn Error>> {
    let xen = MockXen::new();
    mock::install(&xen);
    let (front_table, back_table) =
        (GrantTable::new(&xen.domain(DomId(1)).boot()?)?, GrantTable::new(&xen.domain(DomId(2)).boot()?)?);

    // The front end shares two pages in a row; it would write the references to xenstore.
    let pages = front_table.share_pages(2, DomId(2), Access::ReadWrite)?;
    let grefs: Vec<GrantRef> = pages.grefs().collect();
    let mut front: Front<Squares, _> = Front::init(pages)?;
    println!("d1 shares two pages, {} and {}, with {} slots", grefs[0], grefs[1], front.slots());

    // The back end maps them, in a row as well.
    let mut back: Back<Squares, _> = Back::attach(back_table.map::<2>(DomId(1), &grefs)?)?;

    for number in 1..=5 {
        front.push(&number)?;
    }
    front.publish()?;
    while let Some(number) = back.pop()? {
        back.push(&(number * number))?;
    }
    back.publish()?;
    while let Some(square) = front.pop()? {
        println!("d2 answers {square}");
    }

    // The front end goes first. The back end has the pages mapped, so they are kept for it.
    drop(front);
    println!("d1 ends the grants, {} pages in quarantine", front_table.stats().quarantined);
    back.into_inner().unmap()?;
    println!("d2 unmaps, {} pages come back", front_table.reclaim());
    println!("\nWhat passed between the domains:\n{}", xen.trace_text());
    Ok(())
}
