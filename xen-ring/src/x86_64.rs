//! Copies of records on x86-64, whose moves need no alignment.
//!
//! Rust's atomics do, and there are none of 16 bytes; so these are the processor's moves by name. The compiler does not look into
//! them: it knows that they may read or write this memory, and has no access of its own there to race with but the words of
//! indices, which are aligned and which the processor accesses whole.
#![allow(unsafe_code, reason = "accesses memory that is outside of Rust's rules")]

use core::arch::asm;
#[cfg(target_feature = "sse2")]
use core::arch::x86_64::__m128i;
use core::marker::PhantomData;

use crate::copy::{self, Bytes, Direction, Place};

/// How far behind an address.
pub(crate) trait At {
    /// In bytes, on both sides.
    const AT: usize;
    /// Where it is on the shared side.
    type Place: Place;
}

/// As far as it says.
struct Fixed<L, const AT: usize>(PhantomData<L>);
impl<L: Place, const AT: usize> At for Fixed<L, AT> {
    const AT: usize = AT;
    type Place = L;
}

/// Behind all parts of a `T` that are larger than an `M`.
struct Behind<L, M, T>(PhantomData<(L, M, T)>);
impl<L: Place, M, T> At for Behind<L, M, T> {
    const AT: usize = size_of::<T>() & !(2 * size_of::<M>() - 1);
    type Place = L;
}

/// What one instruction moves.
pub(crate) trait Move: Copy {
    /// Reads it at so many units of `A`'s place behind `from` and its start, and `A` behind that.
    ///
    /// # Safety
    /// The bytes are valid for atomic reads.
    unsafe fn load_at<A: At>(from: *mut u8, offset: usize) -> Self;

    /// Writes it there behind `to`.
    ///
    /// # Safety
    /// The bytes are valid for atomic writes.
    unsafe fn store_at<A: At>(to: *mut u8, offset: usize, value: Self);
}

macro_rules! moves {
    ($($type:ty, $class:ident, $instruction:literal, $modifier:literal;)*) => {$(
        impl Move for $type {
            #[inline(always)]
            unsafe fn load_at<A: At>(from: *mut u8, offset: usize) -> Self {
                let value;
                // SAFETY: reads what the caller promises to be valid, and changes nothing but the register.
                unsafe {
                    asm!(
                        concat!($instruction, " {value", $modifier, "}, [{from} + {offset}*{unit} + {at}]"),
                        value = out($class) value,
                        from = in(reg) from,
                        offset = in(reg) offset,
                        unit = const A::Place::UNIT,
                        at = const A::Place::START + A::AT,
                        options(nostack, preserves_flags, readonly),
                    );
                }
                value
            }

            #[inline(always)]
            unsafe fn store_at<A: At>(to: *mut u8, offset: usize, value: Self) {
                // SAFETY: writes what the caller promises to be valid, and nothing else.
                unsafe {
                    asm!(
                        concat!($instruction, " [{to} + {offset}*{unit} + {at}], {value", $modifier, "}"),
                        value = in($class) value,
                        to = in(reg) to,
                        offset = in(reg) offset,
                        unit = const A::Place::UNIT,
                        at = const A::Place::START + A::AT,
                        options(nostack, preserves_flags),
                    );
                }
            }
        }
    )*};
}

moves! {
    u8, reg_byte, "mov", "";
    u16, reg, "mov", ":x";
    u32, reg, "mov", ":e";
    u64, reg, "mov", ":r";
}
#[cfg(target_feature = "sse2")]
moves! {
    __m128i, xmm_reg, "movups", "";
}

/// Copies bytes that are not very many, in moves of four words, then of one, and then of what is left.
///
/// # Safety
/// As for [`copy::bytes`].
#[inline]
pub(crate) unsafe fn few<D: Direction>(shared: *mut u8, private: *mut u8, len: usize) {
    let mut done = 0;
    // SAFETY: `done` is never more than `len`, and no part is longer than what is left of both sides behind it.
    unsafe {
        while len - done >= 32 {
            record::<D, [u64; 4], Bytes>(shared, done, private.add(done));
            done += 32;
        }
        macro_rules! rest {
            ($($type:ty)*) => {$(
                if (len - done) >= size_of::<$type>() {
                    D::at::<$type, Fixed<Bytes, 0>>(shared, done, private.add(done));
                    done += size_of::<$type>();
                }
            )*};
        }
        rest!(u64 u64 u64 u32 u16);
        if done < len {
            D::at::<u8, Fixed<Bytes, 0>>(shared, done, private.add(done));
        }
    }
}

/// Copies a `T`'s bytes: without a loop if there are not very many.
///
/// # Safety
/// As for [`copy::bytes`], with the size of `T` as the length.
#[inline(always)]
pub(crate) unsafe fn record<D: Direction, T, L: Place>(base: *mut u8, offset: usize, private: *mut u8) {
    macro_rules! each {
        ($type:ty: $($at:literal)*) => {$(
            if size_of::<T>() >= $at + size_of::<$type>() {
                // SAFETY: these bytes are within both sides.
                unsafe { D::at::<$type, Fixed<L, $at>>(base, offset, private) };
            }
        )*};
    }
    if size_of::<T>() > 128 {
        // SAFETY: the caller's promise.
        unsafe { copy::bytes::<D>(base.add(L::START + offset * L::UNIT), private, size_of::<T>()) };
        return;
    }
    #[cfg(target_feature = "sse2")]
    each!(__m128i: 0 16 32 48 64 80 96 112);
    #[cfg(not(target_feature = "sse2"))]
    each!(u64: 0 8 16 24 32 40 48 56 64 72 80 88 96 104 112 120);
    // SAFETY: what is left lies behind all larger parts, and within both sides.
    unsafe {
        #[cfg(target_feature = "sse2")]
        rest::<D, u64, T, L>(base, offset, private);
        rest::<D, u32, T, L>(base, offset, private);
        rest::<D, u16, T, L>(base, offset, private);
        rest::<D, u8, T, L>(base, offset, private);
    }
}

/// Copies the part of an `M`, if `T` has one after the parts that are larger.
///
/// # Safety
/// As for [`record`].
#[inline(always)]
unsafe fn rest<D: Direction, M: Move, T, L: Place>(base: *mut u8, offset: usize, private: *mut u8) {
    if size_of::<T>() & size_of::<M>() != 0 {
        // SAFETY: the part lies within `T`'s bytes.
        unsafe { D::at::<M, Behind<L, M, T>>(base, offset, private) };
    }
}
