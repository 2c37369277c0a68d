//! Copies between shared and private memory, in atomic accesses.
//!
//! Why atomics, and not volatile accesses: to the language, memory that somebody else changes meanwhile is a data
//! race unless every access is atomic, and a volatile access is not. A relaxed atomic access of a word costs the
//! same single instruction, may not be torn, repeated or invented by the compiler either, and stays defined when
//! the other side is a thread of the same program, as with the mocks.
#![allow(unsafe_code, reason = "accesses memory that is outside of Rust's rules")]

#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::x86_64::{At, Move};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicUsize, Ordering};

/// A machine word, the largest granule.
const WORD: usize = size_of::<usize>();

/// From so many bytes on the processor's own copy is no slower than a loop, however old it is.
const STRING: usize = if cfg!(all(target_arch = "x86_64", not(miri))) { 256 } else { usize::MAX };

/// An integer that is read and written as one in shared memory.
pub(crate) trait Granule: Copy {
    /// Reads it, once.
    ///
    /// # Safety
    /// The address is valid for atomic reads and writes of the granule, and aligned to its size.
    unsafe fn load(from: *mut u8) -> Self;

    /// Writes it, once.
    ///
    /// # Safety
    /// As for [`load`](Self::load).
    unsafe fn store(to: *mut u8, value: Self);
}

macro_rules! granules {
    ($($int:ty, $atomic:ty;)*) => {$(
        impl Granule for $int {
            #[inline(always)]
            unsafe fn load(from: *mut u8) -> Self {
                // SAFETY: the caller promises that it is valid and aligned, for the time of this access at least.
                unsafe { <$atomic>::from_ptr(from.cast()) }.load(Ordering::Relaxed)
            }

            #[inline(always)]
            unsafe fn store(to: *mut u8, value: Self) {
                // SAFETY: as in `load`.
                unsafe { <$atomic>::from_ptr(to.cast()) }.store(value, Ordering::Relaxed);
            }
        }
    )*};
}

granules! {
    u8, AtomicU8;
    u16, AtomicU16;
    u32, AtomicU32;
    usize, AtomicUsize;
}

/// How the place of a record is counted: the processor multiplies and adds on its own, if what it is to do is known when the
/// program is compiled.
pub(crate) trait Place {
    /// Bytes before the first.
    const START: usize;
    /// Bytes from one to the next: 1, 2, 4 or 8.
    const UNIT: usize;
}

/// In bytes from the start.
pub(crate) struct Bytes;
impl Place for Bytes {
    const START: usize = 0;
    const UNIT: usize = 1;
}

/// Which way the bytes go.
pub(crate) trait Direction {
    /// Moves one granule.
    ///
    /// # Safety
    /// `shared` is valid for atomic reads and writes of a `G` and aligned to its size; `private` is valid for what
    /// the direction does to it, and no part of the shared memory.
    unsafe fn step<G: Granule>(shared: *mut u8, private: *mut u8);

    /// Moves one part of a record, `A` behind so many units of its place on the shared side, and behind `private`.
    ///
    /// # Safety
    /// The bytes there are valid for atomic reads and writes; those at `private` for what the direction does to
    /// them, and no part of the shared memory.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    unsafe fn at<M: Move, A: At>(base: *mut u8, offset: usize, private: *mut u8);

    /// Moves so many words in a row.
    ///
    /// # Safety
    /// As for [`step`](Self::step), for each of the words.
    unsafe fn words(shared: *mut u8, private: *mut u8, count: usize);
}

/// Moves so many words in a row, as the processor likes to.
///
/// # Safety
/// `from` is valid for reads and `to` for writes of so many words, and they do not overlap.
#[inline]
unsafe fn string(from: *const u8, to: *mut u8, count: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: reads and writes what the caller says is valid; the direction flag is clear, as everywhere in Rust. To the
    // compiler it may be any code that moves each word once, atomically as the steps of this module do.
    unsafe {
        core::arch::asm!(
            "rep movsq",
            inout("rcx") count => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    {
        let _ = (from, to, count);
        unreachable!("no copy is long enough");
    }
}

/// From shared memory.
pub(crate) struct Out;
/// Into shared memory.
pub(crate) struct In;

impl Direction for Out {
    #[inline(always)]
    unsafe fn step<G: Granule>(shared: *mut u8, private: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { private.cast::<G>().write_unaligned(G::load(shared)) };
    }

    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline(always)]
    unsafe fn at<M: Move, A: At>(base: *mut u8, offset: usize, private: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { private.add(A::AT).cast::<M>().write_unaligned(M::load_at::<A>(base, offset)) };
    }

    #[inline(always)]
    unsafe fn words(shared: *mut u8, private: *mut u8, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { string(shared, private, count) };
    }
}

impl Direction for In {
    #[inline(always)]
    unsafe fn step<G: Granule>(shared: *mut u8, private: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { G::store(shared, private.cast::<G>().read_unaligned()) };
    }

    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline(always)]
    unsafe fn at<M: Move, A: At>(base: *mut u8, offset: usize, private: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { M::store_at::<A>(base, offset, private.add(A::AT).cast::<M>().read_unaligned()) };
    }

    #[inline(always)]
    unsafe fn words(shared: *mut u8, private: *mut u8, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { string(private, shared, count) };
    }
}

/// Copies `len` bytes, in as few moves as there are; each byte is accessed once.
///
/// # Safety
/// `shared` is valid for atomic reads and writes of `len` bytes; `private` is valid for reads of as many ([`In`])
/// or writes ([`Out`]), and no part of the shared memory.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
pub(crate) unsafe fn bytes<D: Direction>(mut shared: *mut u8, mut private: *mut u8, mut len: usize) {
    // SAFETY: in all of this `len` is what is left of both sides, and no step is longer than that.
    unsafe {
        if len >= STRING {
            // Which is best where it writes whole lines.
            while shared.addr() % WORD != 0 {
                D::step::<u8>(shared, private);
                (shared, private, len) = (shared.add(1), private.add(1), len - 1);
            }
            let words = len / WORD;
            D::words(shared, private, words);
            (shared, private, len) = (shared.add(words * WORD), private.add(words * WORD), len % WORD);
        }
        crate::x86_64::few::<D>(shared, private, len);
    }
}

/// Copies `len` bytes, in words where the shared side is aligned to them; each byte is accessed once.
///
/// # Safety
/// `shared` is valid for atomic reads and writes of `len` bytes; `private` is valid for reads of as many ([`In`])
/// or writes ([`Out`]), and no part of the shared memory.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
#[inline]
pub(crate) unsafe fn bytes<D: Direction>(mut shared: *mut u8, mut private: *mut u8, mut len: usize) {
    // SAFETY: in all of this `len` is what is left of both sides, no step is longer than that, and steps of words
    // begin only where the shared side is aligned to words.
    unsafe {
        while len > 0 && shared.addr() % WORD != 0 {
            D::step::<u8>(shared, private);
            (shared, private, len) = (shared.add(1), private.add(1), len - 1);
        }
        if len >= STRING {
            let words = len / WORD;
            D::words(shared, private, words);
            (shared, private, len) = (shared.add(words * WORD), private.add(words * WORD), len % WORD);
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

/// Copies a `T`'s bytes without a loop, for a record that is small: so many units of `L` behind `base`.
///
/// # Safety
/// As for [`bytes`], with the size of `T` as the length.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
pub(crate) unsafe fn record<D: Direction, T, L: Place>(base: *mut u8, offset: usize, private: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { crate::x86_64::record::<D, T, L>(base, offset, private) };
}

/// Copies a `T`'s bytes, in the largest granules that divide its size if the shared side is aligned to them: without
/// a loop, for a record that is small.
///
/// # Safety
/// As for [`bytes`], with the size of `T` as the length.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
#[inline(always)]
pub(crate) unsafe fn record<D: Direction, T, L: Place>(base: *mut u8, offset: usize, private: *mut u8) {
    let offset = L::START + offset * L::UNIT;
    // SAFETY: the caller's promise.
    unsafe {
        match const { granule(size_of::<T>()) } {
            2 => granules::<D, u16, T>(base, offset, private),
            4 => granules::<D, u32, T>(base, offset, private),
            WORD => granules::<D, usize, T>(base, offset, private),
            _ => bytes::<D>(base.add(offset), private, size_of::<T>()),
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
const fn granule(size: usize) -> usize {
    let mut granule = WORD;
    while size % granule != 0 {
        granule /= 2;
    }
    granule
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
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

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
/// # Safety
/// As for [`bytes`].
#[cold]
#[inline(never)]
unsafe fn misaligned<D: Direction>(shared: *mut u8, private: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { bytes::<D>(shared, private, len) };
}

/// Writes the same byte `len` times.
///
/// # Safety
/// `shared` is valid for atomic reads and writes of `len` bytes.
pub(crate) unsafe fn fill(mut shared: *mut u8, mut len: usize, value: u8) {
    let word = usize::from_ne_bytes([value; WORD]);
    // SAFETY: `len` is what is left, no step is longer, and words are written where they are aligned.
    unsafe {
        while len > 0 {
            if len >= WORD && shared.addr() % WORD == 0 {
                usize::store(shared, word);
                (shared, len) = (shared.add(WORD), len - WORD);
            } else {
                u8::store(shared, value);
                (shared, len) = (shared.add(1), len - 1);
            }
        }
    }
}
