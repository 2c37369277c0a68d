//! Memory that another domain may change at any time.
#![allow(unsafe_code, reason = "accesses memory that is outside of Rust's rules")]

use core::fmt;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use volatile::VolatilePtr;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes that another domain may change at any time.
///
/// It is linear like `&mut [u8]` (one owner, may be split, lent and sent to another thread) but never hands out a
/// reference: what is read is copied out once, and only the copy is looked at.
pub struct SharedMem<'a> {
    ptr: NonNull<u8>,
    len: usize,
    // Invariant in 'a and not Sync, as a `&mut` with interior mutability.
    _owner: PhantomData<&'a mut core::cell::Cell<u8>>,
}

// SAFETY: `new` promises that nothing else in this domain accesses the bytes, so the one owner may be anywhere.
unsafe impl Send for SharedMem<'_> {}

/// An access that is not within the memory, or not aligned as it needs to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfRange {
    /// First byte of the access.
    pub offset: usize,
    /// Bytes accessed.
    pub len: usize,
    /// Bytes that are there.
    pub available: usize,
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
}

impl<'a> SharedMem<'a> {
    /// Takes `len` bytes at `ptr`.
    ///
    /// # Safety
    /// During `'a` the bytes are valid for reads and writes, and nothing in this domain accesses them but through
    /// this value and what is made of it. Other domains, and Xen, may access them as they like.
    pub const unsafe fn new(ptr: NonNull<u8>, len: usize) -> Self {
        Self { ptr, len, _owner: PhantomData }
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
        if offset > self.len || len > self.len - offset {
            return Err(OutOfRange { offset, len, available: self.len });
        }
        // SAFETY: `offset` is at most `len` of valid bytes, so the sum stays within them or one past.
        Ok(unsafe { self.ptr.add(offset) })
    }

    /// Copies bytes out, each read exactly once.
    ///
    /// # Errors
    /// [`OutOfRange`] when they are not all within the memory; nothing is read then.
    #[inline]
    pub fn read_bytes(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfRange> {
        let from = self.at(offset, out.len())?;
        // SAFETY: both are valid for `out.len()` bytes (checked above; `out` is a slice), and do not overlap, since
        // nobody else in this domain has access to these bytes.
        unsafe { copy::<ReadShared>(from.as_ptr(), out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    /// Copies bytes in, each written exactly once.
    ///
    /// # Errors
    /// [`OutOfRange`] when they do not all fit; nothing is written then.
    #[inline]
    pub fn write_bytes(&self, offset: usize, data: &[u8]) -> Result<(), OutOfRange> {
        let to = self.at(offset, data.len())?;
        // SAFETY: both are valid for `data.len()` bytes (checked above; `data` is a slice), and do not overlap,
        // since nobody else in this domain has access to these bytes.
        unsafe { copy::<WriteShared>(to.as_ptr(), data.as_ptr().cast_mut(), data.len()) };
        Ok(())
    }

    /// Fills bytes with one value.
    ///
    /// # Errors
    /// [`OutOfRange`] when they are not all within the memory; nothing is written then.
    pub fn fill(&self, offset: usize, len: usize, value: u8) -> Result<(), OutOfRange> {
        let to = self.at(offset, len)?;
        for i in 0..len {
            // SAFETY: `i` is below `len`, all of which is valid, and a byte has no alignment or invalid value.
            unsafe { VolatilePtr::new(to.add(i)).write(value) };
        }
        Ok(())
    }

    /// Copies a record out, each byte read exactly once. The record needs no alignment.
    ///
    /// # Errors
    /// [`OutOfRange`] when it is not all within the memory.
    #[inline]
    pub fn read<T: FromBytes>(&self, offset: usize) -> Result<T, OutOfRange> {
        let from = self.at(offset, size_of::<T>())?;
        let mut out = MaybeUninit::<T>::uninit();
        // SAFETY: `from` is valid for a `T`'s bytes, `out` is room for one of our own.
        unsafe { copy::<ReadShared>(from.as_ptr(), out.as_mut_ptr().cast(), size_of::<T>()) };
        // SAFETY: all of its bytes were written just now, and `FromBytes` says that any bytes are a valid `T`.
        Ok(unsafe { out.assume_init() })
    }

    /// Copies a record in, each byte written exactly once. The record needs no alignment.
    ///
    /// # Errors
    /// [`OutOfRange`] when it does not all fit; nothing is written then.
    #[inline]
    pub fn write<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) -> Result<(), OutOfRange> {
        self.write_bytes(offset, value.as_bytes())
    }

    #[inline]
    fn word(&self, offset: usize) -> Result<&AtomicU32, OutOfRange> {
        let ptr = self.at(offset, 4)?.cast::<AtomicU32>();
        if !ptr.is_aligned() {
            return Err(OutOfRange { offset, len: 4, available: self.len });
        }
        // SAFETY: in range and aligned; an atomic may be changed by others, of this machine, at any time. The
        // reference does not leave this module.
        Ok(unsafe { ptr.as_ref() })
    }

    /// Reads a word as an atomic, for indices and event fields.
    ///
    /// # Errors
    /// [`OutOfRange`] when it is not within the memory or not aligned to 4 bytes.
    #[inline]
    pub fn load_u32(&self, offset: usize, order: Ordering) -> Result<u32, OutOfRange> {
        Ok(self.word(offset)?.load(order))
    }

    /// Writes a word as an atomic, for indices and event fields.
    ///
    /// # Errors
    /// [`OutOfRange`] when it is not within the memory or not aligned to 4 bytes.
    #[inline]
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) -> Result<(), OutOfRange> {
        self.word(offset)?.store(value, order);
        Ok(())
    }
}

impl fmt::Debug for SharedMem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMem").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Which of two sides is shared, and so accessed as volatile.
trait Direction {
    /// Moves one `T` between shared and private memory.
    ///
    /// # Safety
    /// Both are valid for a `T`; `shared` is aligned for it.
    unsafe fn move_one<T: Copy>(shared: NonNull<T>, private: *mut T);
}

struct ReadShared;
struct WriteShared;

impl Direction for ReadShared {
    #[inline]
    unsafe fn move_one<T: Copy>(shared: NonNull<T>, private: *mut T) {
        // SAFETY: the caller promises that both are valid, and `shared` aligned.
        unsafe { private.write_unaligned(VolatilePtr::new(shared).read()) };
    }
}

impl Direction for WriteShared {
    #[inline]
    unsafe fn move_one<T: Copy>(shared: NonNull<T>, private: *mut T) {
        // SAFETY: the caller promises that both are valid, and `shared` aligned.
        unsafe { VolatilePtr::new(shared).write(private.read_unaligned()) };
    }
}

/// Copies `len` bytes in words where the shared side is aligned to them.
///
/// # Safety
/// Both sides are valid for `len` bytes and do not overlap; the private side is written only when reading.
#[inline]
unsafe fn copy<D: Direction>(shared: *mut u8, private: *mut u8, len: usize) {
    let head = shared.align_offset(8).min(len);
    let words = (len - head) / 8;
    // SAFETY: every offset below is less than `len`; the word loop starts where `shared` is aligned to 8. Pointers
    // derived from valid ones are not null.
    unsafe {
        for i in 0..head {
            D::move_one(NonNull::new_unchecked(shared.add(i)), private.add(i));
        }
        let (to, from) = (shared.add(head).cast::<u64>(), private.add(head).cast::<u64>());
        for i in 0..words {
            D::move_one(NonNull::new_unchecked(to.add(i)), from.add(i));
        }
        for i in head + words * 8..len {
            D::move_one(NonNull::new_unchecked(shared.add(i)), private.add(i));
        }
    }
}
