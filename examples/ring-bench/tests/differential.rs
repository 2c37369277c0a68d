//! What both ends on `xen-ring` do to a page is what those on `io/ring.h` do, byte by byte, and they understand each other.
#![cfg(ring_h)]

use std::ptr::NonNull;

use proptest::prelude::*;
use ring_bench::rust::{Batches, Rings};
use ring_bench::{Ends, Page, c, rust};

#[derive(Clone, Copy, Debug)]
enum Act {
    Push(u8),
    BackPop(u8),
    BackPush(u8),
    Pop(u8),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let count = || prop_oneof![3 => 0..5_u8, 1 => 0..100_u8];
    let act = prop_oneof![
        count().prop_map(Act::Push),
        count().prop_map(Act::BackPop),
        count().prop_map(Act::BackPush),
        count().prop_map(Act::Pop),
    ];
    prop::collection::vec(act, 1..100)
}

fn starts() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), (0..300_u32).prop_map(|n| u32::MAX - n), any::<u32>()]
}

/// A ring and the page that it is in. The ring is dropped first.
struct Machine<E> {
    ends: E,
    page: Box<Page>,
}

impl<E> Machine<E> {
    fn new(ends: impl FnOnce(NonNull<Page>) -> E) -> Self {
        let mut page = Box::new(Page([0xee; 4096]));
        let ends = ends(NonNull::from(&mut *page));
        Self { ends, page }
    }
}

/// The front of one pair of ends and the back of another.
struct Mixed<F, B>(F, B);

impl<Req, Rsp, F: Ends<Req, Rsp>, B: Ends<Req, Rsp>> Ends<Req, Rsp> for Mixed<F, B> {
    fn push(&mut self, requests: &[Req]) -> (u32, bool) {
        self.0.push(requests)
    }
    fn pop(&mut self, out: &mut [Rsp]) -> (u32, bool) {
        self.0.pop(out)
    }
    fn back_pop(&mut self, out: &mut [Req]) -> (u32, bool) {
        self.1.back_pop(out)
    }
    fn back_push(&mut self, responses: &[Rsp]) -> (u32, bool) {
        self.1.back_push(responses)
    }
}

/// What an act moved and answered, and what the page is behind it.
type Step = (u32, bool, Vec<u8>, Page);

/// Numbers that are different in each place.
fn numbers<T: Copy + Default, const N: usize>(
    count: u8,
    seed: &mut u64,
    from: impl Fn(u64) -> T,
) -> Vec<[T; N]> {
    let mut next = || {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        from(*seed >> 24)
    };
    (0..count).map(|_| std::array::from_fn(|_| next())).collect()
}

fn run<T, U, const Q: usize, const S: usize>(
    machine: &mut Machine<impl Ends<[T; Q], [U; S]>>,
    acts: &[Act],
    (request, response): (impl Fn(u64) -> T, impl Fn(u64) -> U),
) -> Vec<Step>
where
    T: Copy + Default + std::fmt::Debug,
    U: Copy + Default + std::fmt::Debug,
{
    let mut seed = 7;
    let mut steps = Vec::new();
    for &act in acts {
        let (count, answer, taken) = match act {
            Act::Push(count) => {
                let (moved, notify) = machine.ends.push(&numbers(count, &mut seed, &request));
                (moved, notify, String::new())
            }
            Act::BackPush(count) => {
                let (moved, notify) = machine.ends.back_push(&numbers(count, &mut seed, &response));
                (moved, notify, String::new())
            }
            Act::Pop(count) => {
                let mut out = vec![[U::default(); S]; count.into()];
                let (moved, more) = machine.ends.pop(&mut out);
                (moved, more, format!("{out:?}"))
            }
            Act::BackPop(count) => {
                let mut out = vec![[T::default(); Q]; count.into()];
                let (moved, more) = machine.ends.back_pop(&mut out);
                (moved, more, format!("{out:?}"))
            }
        };
        // SAFETY: a page, read between two uses of the ring, which has its address too.
        let page = unsafe { NonNull::from(&*machine.page).as_ptr().read_volatile() };
        steps.push((count, answer, taken.into_bytes(), page));
    }
    steps
}

fn same(left: &[Step], right: &[Step], acts: &[Act]) -> Result<(), TestCaseError> {
    for ((left, right), act) in left.iter().zip(right).zip(acts) {
        prop_assert_eq!(left, right, "{:?}", act);
    }
    Ok(())
}

macro_rules! differential {
    ($protocol:ident, $numbers:expr) => {{
        |start: u32, acts: &[Act]| -> Result<(), TestCaseError> {
            type R = Rings<rust::$protocol>;
            type B = Batches<rust::$protocol>;
            // SAFETY: the page is dropped after the ring, and used by this thread alone.
            let new_c = |page, init| unsafe { c::$protocol::new(page, start, init) };
            // SAFETY: as above.
            let new_r = |page| unsafe { R::new(page, start) };
            // SAFETY: as above.
            let new_b = |page| unsafe { B::new(page, start) };

            let expected = run(&mut Machine::new(|page| new_c(page, true)), acts, $numbers);
            same(&run(&mut Machine::new(new_r), acts, $numbers), &expected, acts)?;
            same(&run(&mut Machine::new(new_b), acts, $numbers), &expected, acts)?;
            // Each `R` makes the page an empty ring, and `C` takes it as it is.
            let mixed = |page| {
                let rust = new_r(page);
                Mixed(rust, new_c(page, false))
            };
            same(&run(&mut Machine::new(mixed), acts, $numbers), &expected, acts)?;
            let mixed = |page| {
                let rust = new_b(page);
                Mixed(new_c(page, false), rust)
            };
            same(&run(&mut Machine::new(mixed), acts, $numbers), &expected, acts)
        }
    }};
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn net(start in starts(), acts in acts()) {
        differential!(Net, (|n| n as u32, |n| n as u16))(start, &acts)?;
    }

    #[test]
    fn blk(start in starts(), acts in acts()) {
        differential!(Blk, (|n: u64| n.wrapping_mul(0x1_0000_0001), |n: u64| !n))(start, &acts)?;
    }
}
