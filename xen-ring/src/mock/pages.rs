//! Memory that stands for pages which two domains share.
#![allow(unsafe_code, reason = "lends memory of the heap as shared memory")]

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU8;
use std::boxed::Box;
use std::sync::Arc;

use crate::{Backing, SharedMem};

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

#[repr(C, align(4096))]
struct Page([AtomicU8; PAGE_SIZE]);

/// Zeroed pages, one after another, that belong to all clones of the handle alike.
#[derive(Clone)]
pub struct SharedPages(Arc<[Page]>);

impl SharedPages {
    /// So many pages. A ring of several is one of 2^n pages.
    pub fn new(count: usize) -> Self {
        Self((0..count).map(|_| Page([const { AtomicU8::new(0) }; PAGE_SIZE])).collect())
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.0.len() * PAGE_SIZE
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the bytes are at this moment.
    pub fn snapshot(&self) -> Box<[u8]> {
        let mut bytes = std::vec![0; self.len()];
        self.clone().mem().read_bytes(0, &mut bytes).expect("as long as the pages");
        bytes.into()
    }
}

impl Backing for SharedPages {
    fn mem(&mut self) -> SharedMem<'_> {
        let first = NonNull::from(&self.0[..]).cast();
        // SAFETY: `len` initialised bytes, in atomics, so that writing through a shared reference is right; valid while
        // the handle is, which the result borrows. Nobody accesses them but through views like this one.
        unsafe { SharedMem::new(first, self.len()) }
    }
}

impl fmt::Debug for SharedPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedPages").field("len", &self.len()).finish_non_exhaustive()
    }
}
