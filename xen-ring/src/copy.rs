//! Copies between shared and private memory, each byte accessed once.
//!
//! To the language, memory that a thread of the same program changes meanwhile is a data race unless every access to it is
//! atomic and all that race are of the same size. A volatile access is not atomic. The other domain is not of this program, so
//! no such rule holds for it: what counts is that the compiler neither repeats nor invents an access. But with the mocks, both
//! sides may be threads of one program. Hence three ways:
//!
//! - x86-64: the processor's moves by name, into which the compiler does not look ([`x86_64`](crate::x86_64)).
//! - Other processors: relaxed atomics, of a word where the alignment permits (`generic`).
//! - Other processors with feature `mock`, and Miri: relaxed atomics of single bytes, also for the words of indices. A lock
//!   keeps those whole.
#![allow(unsafe_code, reason = "accesses memory that is outside of Rust's rules")]

#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::x86_64::{At, Move};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicUsize, Ordering};

/// A machine word, the largest granule.
pub(crate) const WORD: usize = size_of::<usize>();

/// Whether the other side may be a thread of this program, where the accesses are the language's own.
pub(crate) const THREADS: bool =
    cfg!(all(any(miri, feature = "mock"), not(all(target_arch = "x86_64", not(miri)))));

/// From so many bytes on the processor's own copy is no slower than a loop, however old it is.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const STRING: usize = 256;

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
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    unsafe fn words(shared: *mut u8, private: *mut u8, count: usize);
}

/// Moves so many words in a row, as the processor likes to.
///
/// # Safety
/// `from` is valid for reads and `to` for writes of so many words, and they do not overlap.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
unsafe fn string(from: *const u8, to: *mut u8, count: usize) {
    // SAFETY: reads and writes what the caller says is valid; the direction flag is clear, as everywhere in Rust. The
    // compiler knows no more of it than that it may read and write this memory.
    unsafe {
        core::arch::asm!(
            "rep movsq",
            inout("rcx") count => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
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

    #[cfg(all(target_arch = "x86_64", not(miri)))]
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

    #[cfg(all(target_arch = "x86_64", not(miri)))]
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

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
pub(crate) use crate::generic::{bytes, record};

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

/// Writes the same byte `len` times.
///
/// # Safety
/// `shared` is valid for atomic reads and writes of `len` bytes.
pub(crate) unsafe fn fill(mut shared: *mut u8, mut len: usize, value: u8) {
    let mut chunk = [value; 128];
    while len > 0 {
        let count = len.min(chunk.len());
        // SAFETY: `count` is no more than what is left of the shared bytes, and than there are in the chunk, which is only read.
        shared = unsafe {
            bytes::<In>(shared, chunk.as_mut_ptr(), count);
            shared.add(count)
        };
        len -= count;
    }
}

/// Reads the word of an index or an event field, whole.
///
/// # Safety
/// The address is valid for atomic reads and writes of four bytes, and aligned to four.
#[inline]
pub(crate) unsafe fn load_word(from: *mut u8, order: Ordering) -> u32 {
    if THREADS {
        // SAFETY: the caller's promise.
        return unsafe { crate::whole::load(from) };
    }
    // SAFETY: the caller's promise; an atomic may be changed by others at any time.
    unsafe { AtomicU32::from_ptr(from.cast()) }.load(order)
}

/// Writes the word of an index or an event field, whole.
///
/// # Safety
/// As for [`load_word`].
#[inline]
pub(crate) unsafe fn store_word(to: *mut u8, value: u32, order: Ordering) {
    if THREADS {
        // SAFETY: the caller's promise.
        return unsafe { crate::whole::store(to, value) };
    }
    // SAFETY: as in `load_word`.
    unsafe { AtomicU32::from_ptr(to.cast()) }.store(value, order);
}
