//! Responses one after the other, of a ring that was looked at once.

use core::fmt;
use core::iter::FusedIterator;
use core::marker::PhantomData;

use crate::header::{HEADER_SIZE, InSlot, Protocol, slot_size, slot_units};
use crate::mem::{OutOfRange, SharedMem};

/// The responses that were there when it was [made](crate::Front::responses), each a copy that the peer cannot change any
/// more. Those that are not asked for stay in the ring.
///
/// The ring learns how many were taken when this is dropped: whoever leaks it gets the same once more.
pub struct Responses<'r, P> {
    mem: SharedMem<'r>,
    // Each of these in a word of its own stays in a register of its own.
    slots: usize,
    /// The next one; only the low 32 bits are its index.
    index: usize,
    /// One behind the last.
    end: usize,
    taken: &'r mut u32,
    _protocol: PhantomData<fn() -> P>,
}

impl<'r, P: Protocol> Responses<'r, P> {
    /// Those from `taken` up to `end`, in a ring of so many slots.
    #[inline]
    pub(crate) fn new(
        mem: SharedMem<'r>,
        slots: u32,
        taken: &'r mut u32,
        end: u32,
    ) -> Result<Self, OutOfRange> {
        // So no access of a slot fails afterwards.
        mem.check(HEADER_SIZE, slots as usize * slot_size::<P>())?;
        let (index, count) = (*taken as usize, end.wrapping_sub(*taken) as usize);
        let end = index.wrapping_add(count);
        Ok(Self { mem, slots: slots as usize, index, end, taken, _protocol: PhantomData })
    }
}

impl<P: Protocol> Iterator for Responses<'_, P> {
    type Item = P::Response;

    #[inline]
    fn next(&mut self) -> Option<P::Response> {
        if self.index == self.end {
            return None;
        }
        let response =
            self.mem.read_at::<_, InSlot<P>>(slot_units::<P>(self.slots as u32, self.index as u32)).ok()?;
        self.index = self.index.wrapping_add(1);
        Some(response)
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.end.wrapping_sub(self.index);
        (left, Some(left))
    }
}

impl<P: Protocol> ExactSizeIterator for Responses<'_, P> {}
impl<P: Protocol> FusedIterator for Responses<'_, P> {}

impl<P> Drop for Responses<'_, P> {
    #[inline]
    fn drop(&mut self) {
        *self.taken = self.index as u32;
    }
}

impl<P> fmt::Debug for Responses<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responses")
            .field("index", &self.index)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}
