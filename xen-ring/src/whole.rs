//! Words that are whole, of accesses to single bytes: where both sides of shared memory are threads of one program.
//!
//! An access of four bytes must not race with one of a single byte. So a word is four of these, and one lock for all words of
//! the program keeps them together. It also orders what was accessed before a word was written before what is accessed after it
//! was read.
#![allow(unsafe_code, reason = "accesses memory that is outside of Rust's rules")]

use core::sync::atomic::{AtomicBool, Ordering};

use crate::copy::Granule;

static LOCK: AtomicBool = AtomicBool::new(false);

/// The lock, while this is there.
struct Locked;

impl Locked {
    fn new() -> Self {
        while LOCK.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        Self
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        LOCK.store(false, Ordering::Release);
    }
}

/// Reads a word.
///
/// # Safety
/// The address is valid for atomic reads and writes of four bytes.
pub(crate) unsafe fn load(from: *mut u8) -> u32 {
    let _locked = Locked::new();
    // SAFETY: the caller's promise for each of the bytes.
    u32::from_ne_bytes(core::array::from_fn(|at| unsafe { u8::load(from.add(at)) }))
}

/// Writes a word.
///
/// # Safety
/// As for [`load`].
pub(crate) unsafe fn store(to: *mut u8, value: u32) {
    let _locked = Locked::new();
    for (at, byte) in value.to_ne_bytes().into_iter().enumerate() {
        // SAFETY: the caller's promise for each of the bytes.
        unsafe { u8::store(to.add(at), byte) };
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::cell::UnsafeCell;

    use super::*;

    #[repr(align(4))]
    struct Shared(UnsafeCell<[u8; 4]>);

    // SAFETY: accessed by the functions under test alone.
    unsafe impl Sync for Shared {}

    #[test]
    fn a_word_is_whole_between_threads() {
        static WORD: Shared = Shared(UnsafeCell::new([0; 4]));
        let rounds = if cfg!(miri) { 50 } else { 20_000 };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..rounds {
                    // SAFETY: four bytes that live as long as the program.
                    unsafe { store(WORD.0.get().cast(), n % 256 * 0x0101_0101) };
                }
            });
            for _ in 0..rounds {
                // SAFETY: as above.
                let word = unsafe { load(WORD.0.get().cast()) }.to_ne_bytes();
                assert_eq!(word, [word[0]; 4]);
            }
        });
    }
}
