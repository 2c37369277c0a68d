//! Memory that another domain may change at any time.
#![allow(unsafe_code, reason = "accesses memory that is outside of Rust's rules")]

use core::fmt;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::copy::{self, Bytes, In, Out, Place};

/// Bytes that another domain may change at any time.
///
/// It is linear like `&mut [u8]` (one owner, may be split, lent and sent to another thread) but never hands out a
/// reference: what is read is copied out once, and only the copy is looked at. Whatever the others do meanwhile is a wrong
/// value at worst, and never undefined. Only the words of [`load_u32`](Self::load_u32) and [`store_u32`](Self::store_u32) are
/// whole: of everything else, each byte may be from another moment.
pub struct SharedMem<'a> {
    ptr: NonNull<u8>,
    len: usize,
    // Invariant in 'a and not Sync, as a `&mut` with interior mutability.
    _owner: PhantomData<&'a mut core::cell::Cell<u8>>,
}

// SAFETY: the bytes are not bound to a thread, and `new` promises that all access to them is by views like this one.
unsafe impl Send for SharedMem<'_> {}

/// An access that is not within the memory, or not aligned as it needs to be.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfRange {
    /// First byte of the access.
    pub offset: usize,
    /// Bytes accessed.
    pub len: usize,
    /// Bytes that are there.
    pub available: usize,
}

impl OutOfRange {
    /// An access that was refused.
    pub const fn new(offset: usize, len: usize, available: usize) -> Self {
        Self { offset, len, available }
    }
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, len, available } = self;
        write!(f, "access to {len} bytes at {offset} of {available} shared bytes, or misaligned")
    }
}

impl core::error::Error for OutOfRange {}

/// What owns shared memory and lends it: a granted page, a mapping of another domain's page, or a view.
///
/// An implementation lends the same memory every time. One that does not breaks the protocol spoken in that
/// memory, and nothing else: every access is checked against what was lent.
pub trait Backing {
    /// The memory.
    fn mem(&mut self) -> SharedMem<'_>;

    /// How many bytes there are, if that is the same for every value of the type, as of a page: then what depends on it is
    /// computed when the program is compiled.
    #[inline]
    fn fixed_len(&self) -> Option<usize> {
        None
    }
}

impl Backing for SharedMem<'_> {
    #[inline]
    fn mem(&mut self) -> SharedMem<'_> {
        self.reborrow()
    }
}

impl<B: Backing + ?Sized> Backing for &mut B {
    #[inline]
    fn mem(&mut self) -> SharedMem<'_> {
        (**self).mem()
    }

    #[inline]
    fn fixed_len(&self) -> Option<usize> {
        (**self).fixed_len()
    }
}

impl<'a> SharedMem<'a> {
    /// Takes `len` bytes at `ptr`.
    ///
    /// # Safety
    /// During `'a`
    /// - the bytes are valid for reads and writes, and initialised;
    /// - no reference to any of them is used, and nothing else in this program accesses them but other views of this type.
    ///   Two views may overlap, as those of the two sides do in a test, where one program holds both;
    /// - if two such views are used by several threads at once, the processor is an x86-64, or the feature `mock` is on:
    ///   elsewhere the views may access the same byte by accesses of different sizes, which must not race.
    ///
    /// Other domains, Xen and devices may access them at any time and as they like.
    pub const unsafe fn new(ptr: NonNull<u8>, len: usize) -> Self {
        Self { ptr, len, _owner: PhantomData }
    }

    /// Takes the bytes of a `T`, as [`new`](Self::new). The compiler then knows how they are aligned, so that words in them
    /// need not be looked at for that.
    ///
    /// # Safety
    /// As for [`new`](Self::new), with the size of `T` as the length; and `ptr` is aligned as a `T` is.
    #[inline]
    pub unsafe fn of<T>(ptr: NonNull<T>) -> Self {
        // SAFETY: a pointer that is aligned to a power of two stays where it is when it is aligned to it.
        unsafe { core::hint::assert_unchecked(ptr.is_aligned()) };
        // SAFETY: the caller's promise.
        unsafe { Self::new(ptr.cast(), size_of::<T>()) }
    }

    /// How many bytes there are.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Lends all of it.
    #[inline]
    pub fn reborrow(&mut self) -> SharedMem<'_> {
        SharedMem { ptr: self.ptr, len: self.len, _owner: PhantomData }
    }

    /// Two parts, the second from byte `mid`.
    ///
    /// # Errors
    /// [`OutOfRange`] when `mid` lies beyond the end.
    pub fn split_at(self, mid: usize) -> Result<(Self, Self), OutOfRange> {
        let second = self.at(mid, 0)?;
        let (first, rest) = (self.ptr, self.len - mid);
        Ok((
            Self { ptr: first, len: mid, _owner: PhantomData },
            Self { ptr: second, len: rest, _owner: PhantomData },
        ))
    }

    /// A part.
    ///
    /// # Errors
    /// [`OutOfRange`] when the part is not within the memory.
    pub fn slice(self, offset: usize, len: usize) -> Result<Self, OutOfRange> {
        let ptr = self.at(offset, len)?;
        Ok(Self { ptr, len, _owner: PhantomData })
    }

    /// The address of `len` bytes at `offset`, all of them within.
    #[inline]
    fn at(&self, offset: usize, len: usize) -> Result<NonNull<u8>, OutOfRange> {
        // In this order one comparison is left where `len` and the memory's size are constants.
        if self.len < len || offset > self.len - len {
            return Err(OutOfRange { offset, len, available: self.len });
        }
        // SAFETY: `offset` is at most `len` of valid bytes, so the sum stays within them or one past.
        Ok(unsafe { self.ptr.add(offset) })
    }

    /// Whether an access of `len` bytes at `offset` would be within.
    #[inline]
    pub(crate) fn check(&self, offset: usize, len: usize) -> Result<(), OutOfRange> {
        self.at(offset, len).map(|_| ())
    }

    /// Copies bytes out, each read exactly once.
    ///
    /// # Errors
    /// [`OutOfRange`] when they are not all within the memory; nothing is read then.
    pub fn read_bytes(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfRange> {
        let from = self.at(offset, out.len())?;
        // SAFETY: both are valid for `out.len()` bytes: checked above, and `out` is a slice. They do not overlap, for
        // there are no references to shared bytes.
        unsafe { copy::bytes::<Out>(from.as_ptr(), out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    /// Copies bytes in, each written exactly once.
    ///
    /// # Errors
    /// [`OutOfRange`] when they do not all fit; nothing is written then.
    pub fn write_bytes(&self, offset: usize, data: &[u8]) -> Result<(), OutOfRange> {
        let to = self.at(offset, data.len())?;
        // SAFETY: both are valid for `data.len()` bytes: checked above, and `data` is a slice, which is read only. They
        // do not overlap, for there are no references to shared bytes.
        unsafe { copy::bytes::<In>(to.as_ptr(), data.as_ptr().cast_mut(), data.len()) };
        Ok(())
    }

    /// Fills bytes with one value.
    ///
    /// # Errors
    /// [`OutOfRange`] when they are not all within the memory; nothing is written then.
    pub fn fill(&self, offset: usize, len: usize, value: u8) -> Result<(), OutOfRange> {
        let to = self.at(offset, len)?;
        // SAFETY: `to` is valid for `len` bytes.
        unsafe { copy::fill(to.as_ptr(), len, value) };
        Ok(())
    }

    /// Copies a record out, each byte read exactly once. The record needs no alignment.
    ///
    /// # Errors
    /// [`OutOfRange`] when it is not all within the memory.
    #[inline]
    pub fn read<T: FromBytes>(&self, offset: usize) -> Result<T, OutOfRange> {
        self.read_at::<T, Bytes>(offset)
    }

    /// Copies a record out that is so many units of `L` from its start.
    #[inline]
    pub(crate) fn read_at<T: FromBytes, L: Place>(&self, units: usize) -> Result<T, OutOfRange> {
        self.at(L::START + units * L::UNIT, size_of::<T>())?;
        let mut out = MaybeUninit::<T>::uninit();
        // SAFETY: that place is valid for a `T`'s bytes, `out` is room for one of our own.
        unsafe { copy::record::<Out, T, L>(self.ptr.as_ptr(), units, out.as_mut_ptr().cast()) };
        // SAFETY: all of its bytes were written just now, and `FromBytes` says that any bytes are a valid `T`.
        Ok(unsafe { out.assume_init() })
    }

    /// Copies a record out to a place that is there, as [`read`](Self::read).
    ///
    /// # Errors
    /// [`OutOfRange`] when it is not all within the memory; the place stays as it is then.
    #[inline]
    pub fn read_into<T: FromBytes>(&self, offset: usize, out: &mut T) -> Result<(), OutOfRange> {
        self.read_into_at::<T, Bytes>(offset, out)
    }

    /// The same with so many units of `L` from its start.
    #[inline]
    pub(crate) fn read_into_at<T: FromBytes, L: Place>(
        &self,
        units: usize,
        out: &mut T,
    ) -> Result<(), OutOfRange> {
        self.at(L::START + units * L::UNIT, size_of::<T>())?;
        // SAFETY: that place is valid for a `T`'s bytes; `out` is a `T` of our own, and stays one whatever bytes it gets, as
        // `FromBytes` says.
        unsafe { copy::record::<Out, T, L>(self.ptr.as_ptr(), units, core::ptr::from_mut(out).cast()) };
        Ok(())
    }

    /// Copies a record in, each byte written exactly once. The record needs no alignment.
    ///
    /// # Errors
    /// [`OutOfRange`] when it does not all fit; nothing is written then.
    #[inline]
    pub fn write<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) -> Result<(), OutOfRange> {
        self.write_at::<T, Bytes>(offset, value)
    }

    /// Copies a record in that is so many units of `L` from its start.
    #[inline]
    pub(crate) fn write_at<T: IntoBytes + Immutable, L: Place>(
        &self,
        units: usize,
        value: &T,
    ) -> Result<(), OutOfRange> {
        self.at(L::START + units * L::UNIT, size_of::<T>())?;
        let from = value.as_bytes().as_ptr();
        // SAFETY: that place is valid for a `T`'s bytes; `from` has as many, which are initialised (`IntoBytes`) and only read.
        // They do not overlap, for there are no references to shared bytes.
        unsafe { copy::record::<In, T, L>(self.ptr.as_ptr(), units, from.cast_mut()) };
        Ok(())
    }

    /// Copies records in, `stride` bytes from one to the next.
    ///
    /// # Errors
    /// [`OutOfRange`] when they are not all within the memory; nothing is written then.
    #[inline]
    pub(crate) fn write_each<T: IntoBytes + Immutable>(
        &self,
        offset: usize,
        stride: usize,
        values: &[T],
    ) -> Result<(), OutOfRange> {
        let to = self.at(offset, span(stride, size_of::<T>(), values.len()))?.as_ptr();
        for (i, value) in values.iter().enumerate() {
            // SAFETY: as in `write`, and all of the records are within (checked above).
            unsafe { copy::record::<In, T, Bytes>(to, i * stride, value.as_bytes().as_ptr().cast_mut()) };
        }
        Ok(())
    }

    /// Copies records out, `stride` bytes from one to the next.
    ///
    /// # Errors
    /// [`OutOfRange`] when they are not all within the memory; nothing is read then.
    #[inline]
    pub(crate) fn read_each<T: FromBytes>(
        &self,
        offset: usize,
        stride: usize,
        out: &mut [T],
    ) -> Result<(), OutOfRange> {
        let from = self.at(offset, span(stride, size_of::<T>(), out.len()))?.as_ptr();
        for (i, place) in out.iter_mut().enumerate() {
            // SAFETY: `from` as in `read`, and all of the records are within (checked above); `place` is a `T` of our own,
            // and stays one whatever bytes it gets, as `FromBytes` says.
            unsafe { copy::record::<Out, T, Bytes>(from, i * stride, core::ptr::from_mut(place).cast()) };
        }
        Ok(())
    }

    #[inline]
    fn word(&self, offset: usize) -> Result<*mut u8, OutOfRange> {
        let ptr = self.at(offset, 4)?;
        if !ptr.cast::<u32>().is_aligned() {
            return Err(OutOfRange { offset, len: 4, available: self.len });
        }
        Ok(ptr.as_ptr())
    }

    /// Reads a word as an atomic, for indices and event fields.
    ///
    /// # Errors
    /// [`OutOfRange`] when it is not within the memory or not aligned to 4 bytes.
    ///
    /// # Panics
    /// If `order` is none for loads, as [`AtomicU32::load`](core::sync::atomic::AtomicU32::load).
    #[inline]
    pub fn load_u32(&self, offset: usize, order: Ordering) -> Result<u32, OutOfRange> {
        let word = self.word(offset)?;
        // SAFETY: in range and aligned, and `new` promises that nobody accesses these bytes by other means than this one's.
        Ok(unsafe { copy::load_word(word, order) })
    }

    /// Writes a word as an atomic, for indices and event fields.
    ///
    /// # Errors
    /// [`OutOfRange`] when it is not within the memory or not aligned to 4 bytes.
    ///
    /// # Panics
    /// If `order` is none for stores, as [`AtomicU32::store`](core::sync::atomic::AtomicU32::store).
    #[inline]
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) -> Result<(), OutOfRange> {
        let word = self.word(offset)?;
        // SAFETY: as in `load_u32`.
        unsafe { copy::store_word(word, value, order) };
        Ok(())
    }
}

/// From the first byte of the first of `count` records to the last of the last; more than there is of anything if that
/// is beyond all numbers.
#[inline]
fn span(stride: usize, size: usize, count: usize) -> usize {
    match count.checked_sub(1) {
        Some(before) => before.saturating_mul(stride).saturating_add(size),
        None => 0,
    }
}

impl fmt::Debug for SharedMem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMem").field("len", &self.len).finish_non_exhaustive()
    }
}
