//! A machine with the kernel in one domain and a monitor in another.
#![allow(dead_code, unreachable_pub, reason = "not every test uses all")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use own_kernel_sample::{Heart, Heartbeat, Kernel, Reply, SharedPage};
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, Errno, Gfn, HypercallNr};
use xen_ring::Back;

/// The kernel with a domain of the mock's for all its parts.
pub type OnMock = Kernel<MockDomain, MockDomain, MockDomain>;

pub fn on_mock(domain: MockDomain) -> OnMock {
    Kernel { call: domain.clone(), memory: domain.clone(), time: domain }
}

/// The frame and the port that the toolstack chose.
pub const FRAME: Gfn = Gfn(0xfe_f00);
pub const PORT: u32 = 7;
/// `EVTCHNOP_send`.
pub const SEND: usize = 4;

pub struct World {
    pub xen: MockXen,
    pub kernel: OnMock,
    /// Events that the guest sent.
    pub events: Arc<AtomicU32>,
    rung: Arc<AtomicBool>,
}

/// A machine on which nobody answers yet.
pub fn world() -> World {
    let xen = MockXen::new();
    let guest = xen.domain(DomId(1));
    guest.special_page(FRAME);
    let (events, rung) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, bell) = (Arc::clone(&events), Arc::clone(&rung));
    // One hypercall that the mock does not know by itself: it is for the tests of what needs it.
    xen.register(HypercallNr::EVENT_CHANNEL_OP, move |caller, [command, op, ..]| {
        // SAFETY: the only such call in these tests is `event::send`, whose argument begins with the port.
        let port = unsafe { (op as *const u32).read() };
        if (caller.id(), command, port) != (DomId(1), SEND, PORT) {
            return Errno::EINVAL.as_return();
        }
        count.fetch_add(1, Relaxed);
        bell.store(true, Relaxed);
        0
    });
    World { kernel: on_mock(guest), xen, events, rung }
}

impl World {
    pub fn heart(&self) -> Heart<'_, OnMock> {
        // SAFETY: the frame was put there for this, and each test connects once.
        unsafe { Heart::connect(&self.kernel, FRAME, PORT) }.expect("the page is there")
    }

    /// The monitor's mapping of the same page.
    pub fn far_page(&self) -> SharedPage {
        let page = self.kernel.memory.page_at(FRAME).expect("the toolstack put it there");
        // SAFETY: it stays as long as the machine, and all accesses are those of `SharedPage`.
        unsafe { SharedPage::new(page) }
    }

    /// A monitor that answers as the closure says: when the next beat is due, or not at all for now.
    pub fn monitor(&self, mut answer: impl FnMut(u32) -> Option<u32> + Send + 'static) {
        let (bell, page) = (Arc::clone(&self.rung), self.far_page());
        let (mut page, mut back, mut waiting) = (Some(page), None::<Back<Heartbeat, SharedPage>>, None);
        self.xen.add_actor("monitor", move |xen| {
            if !bell.swap(false, Relaxed) && waiting.is_none() {
                return false;
            }
            // The ring is there once the guest has sent its first event.
            let back = back.get_or_insert_with(|| Back::attach(page.take().unwrap()).unwrap());
            let mut did = false;
            loop {
                while let Some(id) = waiting.take().or_else(|| back.pop().unwrap().map(|beat| beat.id)) {
                    let Some(next) = answer(id) else {
                        waiting = Some(id);
                        return did;
                    };
                    xen.trace(|| format!("the monitor answers {id}: again in {next} ms"));
                    back.push(&Reply { id, next }).unwrap();
                    // No event back: the guest's `wait` ends whenever a far side did something.
                    back.publish().unwrap();
                    did = true;
                }
                if !back.arm().unwrap() {
                    return did;
                }
            }
        });
    }
}
