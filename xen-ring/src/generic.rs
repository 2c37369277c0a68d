//! Copies in the language's own accesses, for processors that have no way of their own here, and for Miri.
#![allow(unsafe_code, reason = "accesses memory that is outside of Rust's rules")]
#![cfg_attr(all(target_arch = "x86_64", not(miri)), allow(dead_code, reason = "only tests use it here"))]

use crate::copy::{Direction, Granule, Place, THREADS, WORD};

/// Copies `len` bytes, in words where the shared side is aligned to them, unless both sides may be [`THREADS`]; each byte is
/// accessed once.
///
/// # Safety
/// `shared` is valid for atomic reads and writes of `len` bytes; `private` is valid for reads of as many
/// ([`In`](crate::copy::In)) or writes ([`Out`](crate::copy::Out)), and no part of the shared memory.
#[inline]
pub(crate) unsafe fn bytes<D: Direction>(shared: *mut u8, private: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { steps::<D, THREADS>(shared, private, len) };
}

/// # Safety
/// As for [`bytes`].
#[inline]
unsafe fn steps<D: Direction, const SINGLE: bool>(mut shared: *mut u8, mut private: *mut u8, mut len: usize) {
    // SAFETY: in all of this `len` is what is left of both sides, no step is longer than that, and steps of words
    // begin only where the shared side is aligned to words.
    unsafe {
        while len > 0 && (SINGLE || shared.addr() % WORD != 0) {
            D::step::<u8>(shared, private);
            (shared, private, len) = (shared.add(1), private.add(1), len - 1);
        }
        // The loop around a word costs more than the word, so four at a time.
        while len >= 4 * WORD {
            for i in 0..4 {
                D::step::<usize>(shared.add(i * WORD), private.add(i * WORD));
            }
            (shared, private, len) = (shared.add(4 * WORD), private.add(4 * WORD), len - 4 * WORD);
        }
        while len >= WORD {
            D::step::<usize>(shared, private);
            (shared, private, len) = (shared.add(WORD), private.add(WORD), len - WORD);
        }
        while len > 0 {
            D::step::<u8>(shared, private);
            (shared, private, len) = (shared.add(1), private.add(1), len - 1);
        }
    }
}

/// Copies a `T`'s bytes, in the largest granules that divide its size if the shared side is aligned to them: without
/// a loop, for a record that is small.
///
/// # Safety
/// As for [`bytes`], with the size of `T` as the length.
#[inline(always)]
pub(crate) unsafe fn record<D: Direction, T, L: Place>(base: *mut u8, offset: usize, private: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { record_in::<D, T, L, THREADS>(base, offset, private) };
}

/// # Safety
/// As for [`record`].
#[inline(always)]
unsafe fn record_in<D: Direction, T, L: Place, const SINGLE: bool>(
    base: *mut u8,
    offset: usize,
    private: *mut u8,
) {
    let offset = L::START + offset * L::UNIT;
    // SAFETY: the caller's promise.
    unsafe {
        match const { granule(size_of::<T>(), SINGLE) } {
            2 => granules::<D, u16, T>(base, offset, private),
            4 => granules::<D, u32, T>(base, offset, private),
            WORD => granules::<D, usize, T>(base, offset, private),
            _ => steps::<D, SINGLE>(base.add(offset), private, size_of::<T>()),
        }
    }
}

const fn granule(size: usize, single: bool) -> usize {
    let mut granule = if single { 1 } else { WORD };
    while size % granule != 0 {
        granule /= 2;
    }
    granule
}

/// # Safety
/// As for [`record`]; the size of `T` is a multiple of the size of `G`.
#[inline(always)]
unsafe fn granules<D: Direction, G: Granule, T>(base: *mut u8, offset: usize, private: *mut u8) {
    // SAFETY: every offset is that of a whole granule of `T`'s bytes, and the alignment of the first is that of all.
    unsafe {
        let shared = base.add(offset);
        // What is known of the offset when this is compiled need not be computed.
        if (base.addr() | offset) % size_of::<G>() == 0 {
            for offset in (0..size_of::<T>()).step_by(size_of::<G>()) {
                D::step::<G>(shared.add(offset), private.add(offset));
            }
        } else {
            misaligned::<D>(shared, private, size_of::<T>());
        }
    }
}

/// # Safety
/// As for [`bytes`].
#[cold]
#[inline(never)]
unsafe fn misaligned<D: Direction>(shared: *mut u8, private: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { bytes::<D>(shared, private, len) };
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::cell::RefCell;
    use std::vec::Vec;

    use super::*;
    use crate::copy::{Bytes, In, Out};

    std::thread_local! {
        static SIZES: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    }

    /// Moves nothing, and remembers how large each access would have been.
    struct Sizes;
    impl Direction for Sizes {
        unsafe fn step<G: Granule>(_: *mut u8, _: *mut u8) {
            SIZES.with_borrow_mut(|sizes| sizes.push(size_of::<G>()));
        }

        #[cfg(all(target_arch = "x86_64", not(miri)))]
        unsafe fn at<M: crate::x86_64::Move, A: crate::x86_64::At>(_: *mut u8, _: usize, _: *mut u8) {
            unreachable!("not the generic way");
        }

        #[cfg(all(target_arch = "x86_64", not(miri)))]
        unsafe fn words(_: *mut u8, _: *mut u8, _: usize) {
            unreachable!("not the generic way");
        }
    }

    /// The accesses of `f`.
    fn sizes(f: impl FnOnce(*mut u8, *mut u8)) -> Vec<usize> {
        let (mut shared, mut private) = ([0_u64; 16], [0_u64; 16]);
        f(shared.as_mut_ptr().cast(), private.as_mut_ptr().cast());
        SIZES.take()
    }

    #[test]
    fn threads_of_one_program_access_single_bytes_only() {
        for len in [1, 7, 8, 64, 100] {
            // SAFETY: nothing is accessed.
            let copied = sizes(|shared, private| unsafe { steps::<Sizes, true>(shared, private, len) });
            assert_eq!(copied, std::vec![1; len]);
        }
        // SAFETY: as above.
        let record =
            sizes(|shared, private| unsafe { record_in::<Sizes, [u32; 3], Bytes, true>(shared, 4, private) });
        assert_eq!(record, [1; 12]);
    }

    #[test]
    fn domains_are_served_in_words_where_the_alignment_permits() {
        // SAFETY: nothing is accessed.
        let copied = sizes(|shared, private| unsafe { steps::<Sizes, false>(shared, private, 3 * WORD + 1) });
        assert_eq!(copied, [WORD, WORD, WORD, 1]);
        // SAFETY: as above.
        let record = sizes(|shared, private| unsafe {
            record_in::<Sizes, [u32; 3], Bytes, false>(shared, 4, private)
        });
        assert_eq!(record, [4; 3]);
    }

    fn copies<const SINGLE: bool>() {
        for offset in 0..9 {
            for len in (0..40).chain([63, 64, 65]) {
                let data: Vec<u8> = (0..len as u8).map(|n| n | 0x80).collect();
                let (mut shared, mut out) = ([0_u64; 16], std::vec![0; len]);
                let base: *mut u8 = shared.as_mut_ptr().cast();
                // SAFETY: within the 128 bytes, and within `data` and `out`; `data` is read only.
                unsafe {
                    steps::<In, SINGLE>(base.add(offset), data.as_ptr().cast_mut(), len);
                    steps::<Out, SINGLE>(base.add(offset), out.as_mut_ptr(), len);
                }
                assert_eq!(out, data);
                let bytes: Vec<u8> = shared.iter().flat_map(|word| word.to_ne_bytes()).collect();
                assert_eq!(&bytes[offset..offset + len], data);
                assert!(bytes[..offset].iter().chain(&bytes[offset + len..]).all(|byte| *byte == 0));
            }
        }
    }

    #[test]
    fn both_ways_copy_right() {
        copies::<true>();
        copies::<false>();
    }
}
