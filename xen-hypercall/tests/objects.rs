//! A platform behind a trait object, a reference or an owner on the heap is a platform like any other.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use xen_hypercall::abi::EvtchnClose;
use xen_hypercall::mock::MockXen;
use xen_hypercall::multicall::Multicall;
use xen_hypercall::{
    DomId, GrantRoom, Hypercall, HypercallNr, Platform, SpecialPages, VcpuId, Wait, sched, vcpu, version,
};

#[test]
fn typed_calls_take_a_trait_object() {
    let xen = MockXen::new();
    xen.register(HypercallNr::EVENT_CHANNEL_OP, |_, args| args[0] as isize);
    let guest = xen.domain(DomId(1));
    let object: &dyn Hypercall = &guest;
    assert_eq!(version::version(object), Ok((4, 17)));
    assert_eq!(vcpu::is_up(object, VcpuId(0)), Ok(true));
    assert_eq!(sched::yield_now(object), Ok(()));
    let mut close = EvtchnClose { port: 3 };
    let mut calls = Multicall::<1>::new();
    let index = calls.add(&mut close).unwrap();
    assert_eq!(calls.run(object).unwrap().get(index), Some(Ok(3)));

    let driver: &dyn Platform = &guest;
    assert_eq!(version::version(driver), Ok((4, 17)));
    let page = driver.alloc_pages(1).unwrap();
    assert_eq!(guest.page_at(driver.gfn(page)), Some(page));
}

/// All traits by one value, as a driver's generic code uses them.
fn use_all(platform: impl Platform + SpecialPages + GrantRoom + Wait) {
    assert_eq!(version::version(&platform), Ok((4, 17)));
    let page = platform.alloc_pages(2).unwrap();
    let gfn = platform.gfn(page);
    // SAFETY: nobody uses the frame for anything else.
    assert_eq!(unsafe { platform.map_special(gfn, 1) }, Some(page));
    // SAFETY: the pages were allocated above, and nobody uses them.
    unsafe { platform.free_pages(page, 2) };
    let room = platform.reserve_room(1).unwrap();
    // SAFETY: the room was reserved above, and nothing is mapped there.
    unsafe { platform.release_room(room, 1) };
    assert_eq!(platform.own_domain(), Ok(DomId(1)));
    let until = platform.now() + Duration::from_millis(3);
    platform.wait(Some(until), &|| false);
    assert_eq!(platform.now(), until);
}

#[test]
fn owners_on_the_heap_are_platforms() {
    let guest = MockXen::new().domain(DomId(1));
    use_all(&guest);
    use_all(Box::new(guest.clone()));
    use_all(Rc::new(guest.clone()));
    use_all(Arc::new(guest.clone()));
    assert_eq!(guest.pages_in_use(), 0);
    let object: Arc<dyn Hypercall> = Arc::new(guest);
    assert_eq!(version::version(&object), Ok((4, 17)));
}
