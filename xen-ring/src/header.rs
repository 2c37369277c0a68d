//! What front and back share: the layout of a ring's page (`io/ring.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use core::marker::PhantomData;

use crate::copy::Place;
use crate::error::RingError;
use crate::mem::{Backing, OutOfRange, SharedMem};

/// Bytes before the first slot.
pub const HEADER_SIZE: usize = 64;

/// Where `req_prod`: how many requests the front has sent.
pub const REQ_PROD: usize = 0;
/// Where `req_event`: the back is to be notified when `req_prod` reaches this.
pub const REQ_EVENT: usize = 4;
/// Where `rsp_prod`: how many responses the back has sent.
pub const RSP_PROD: usize = 8;
/// Where `rsp_event`: the front is to be notified when `rsp_prod` reaches this.
pub const RSP_EVENT: usize = 12;

/// The records that travel in a ring. A request and a response share a slot, which is as large as the larger.
///
/// The bounds say that the records have no padding and that any bytes are a valid record: what a peer writes can
/// be wrong, but never undefined.
pub trait Protocol {
    /// What the front sends.
    type Request: FromBytes + IntoBytes + Immutable + KnownLayout + Copy;
    /// What the back answers.
    type Response: FromBytes + IntoBytes + Immutable + KnownLayout + Copy;
}

pub(crate) const fn slot_size<P: Protocol>() -> usize {
    let (request, response) = (size_of::<P::Request>(), size_of::<P::Response>());
    if request > response { request } else { response }
}

/// How many slots a ring of protocol `P` has in `len` bytes: the largest power of two that fits behind the header
/// (`__RING_SIZE` of `io/ring.h`). Zero when not even one fits.
pub const fn slots_in<P: Protocol>(len: usize) -> u32 {
    let size = slot_size::<P>();
    if size == 0 || len < HEADER_SIZE + size {
        return 0;
    }
    let fit = (len - HEADER_SIZE) / size;
    if fit > 1 << 31 { 1 << 31 } else { 1 << fit.ilog2() }
}

/// How many slots there are: as was found out when the ring was made, or, where all memory of this kind has the same
/// size, a number that the compiler knows, and with it that every slot is within.
#[inline]
pub(crate) fn known<P: Protocol>(mem: &impl Backing, slots: u32) -> u32 {
    match mem.fixed_len().map(slots_in::<P>) {
        Some(known @ 1..) => known,
        _ => slots,
    }
}

#[inline]
pub(crate) const fn slot_offset<P: Protocol>(slots: u32, index: u32) -> usize {
    HEADER_SIZE + (index & slots.wrapping_sub(1)) as usize * slot_size::<P>()
}

/// Where a slot is, for a record in it: in the largest units that a processor knows and of which a slot is few, if there is
/// such a unit; what is many has to be multiplied anyway.
pub(crate) struct InSlot<P>(PhantomData<P>);

impl<P: Protocol> Place for InSlot<P> {
    const START: usize = HEADER_SIZE;
    const UNIT: usize = match slot_size::<P>() {
        size if size % 8 == 0 && size / 8 < 10 => 8,
        size if size % 4 == 0 && size / 4 < 10 => 4,
        _ => 1,
    };
}

/// A slot's [place](InSlot), in its units.
#[inline]
pub(crate) const fn slot_units<P: Protocol>(slots: u32, index: u32) -> usize {
    (index & slots.wrapping_sub(1)) as usize * (slot_size::<P>() / <InSlot<P> as Place>::UNIT)
}

/// Splits `count` slots from `index` on where the ring's memory ends: so many, and then the rest from the first slot on.
#[inline]
fn until_end(slots: u32, index: u32, count: usize) -> usize {
    count.min((slots - (index & (slots - 1))) as usize)
}

/// Writes records to the slots from `index` on, at most as many as there are slots.
#[inline]
pub(crate) fn write_slots<P: Protocol, T: IntoBytes + Immutable>(
    mem: &SharedMem<'_>,
    slots: u32,
    index: u32,
    records: &[T],
) -> Result<(), OutOfRange> {
    let (first, second) = records.split_at(until_end(slots, index, records.len()));
    for (offset, records) in [(slot_offset::<P>(slots, index), first), (HEADER_SIZE, second)] {
        if size_of::<T>() == slot_size::<P>() {
            mem.write_bytes(offset, records.as_bytes())?;
        } else {
            mem.write_each(offset, slot_size::<P>(), records)?;
        }
    }
    Ok(())
}

/// Reads records from the slots from `index` on, at most as many as there are slots.
#[inline]
pub(crate) fn read_slots<P: Protocol, T: FromBytes + IntoBytes>(
    mem: &SharedMem<'_>,
    slots: u32,
    index: u32,
    out: &mut [T],
) -> Result<(), OutOfRange> {
    let (first, second) = out.split_at_mut(until_end(slots, index, out.len()));
    for (offset, out) in [(slot_offset::<P>(slots, index), first), (HEADER_SIZE, second)] {
        if size_of::<T>() == slot_size::<P>() {
            mem.read_bytes(offset, out.as_mut_bytes())?;
        } else {
            mem.read_each(offset, slot_size::<P>(), out)?;
        }
    }
    Ok(())
}

/// Why there is no ring in `available` bytes: not even one slot fits.
pub(crate) fn too_small<P: Protocol>(available: usize) -> RingError {
    OutOfRange { offset: HEADER_SIZE, len: slot_size::<P>(), available }.into()
}
