//! Several hypercalls in one (`multicall_entry` of `xen.h`): one trap instead of many.
//!
//! ```
//! use xen_hypercall::abi::{EvtchnSend, EvtchnUnmask};
//! use xen_hypercall::multicall::Multicall;
//! # use xen_hypercall::{DomId, HypercallNr, mock::MockXen};
//! # let xen = MockXen::new();
//! # xen.register(HypercallNr::EVENT_CHANNEL_OP, |_, args| args[0] as isize);
//! # let guest = xen.domain(DomId(1));
//! let (mut send, mut unmask) = (EvtchnSend { port: 3 }, EvtchnUnmask { port: 4 });
//! let mut calls = Multicall::<8>::new();
//! calls.add(&mut send)?;
//! let second = calls.add(&mut unmask)?;
//! let results = calls.run(&guest)?;
//! assert!(results.all_succeeded());
//! let result = results.get(second);
//! # assert_eq!(result, Some(Ok(9)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Xen does the calls in order, and all of them whatever their results. Between two calls others may run. PV guests have
//! it in every Xen, those on Arm since 4.3, HVM and PVH guests on x86 since 4.15.
#![allow(unsafe_code, reason = "keeps addresses of arguments until the call")]

use core::fmt;
use core::marker::PhantomData;

use crate::abi::MulticallEntry;
pub use crate::call::Command;
use crate::{Errno, Hypercall, HypercallNr};

/// Up to `N` hypercalls that are made together. It borrows the arguments until it has run.
#[derive(Debug)]
pub struct Multicall<'a, const N: usize> {
    entries: [MulticallEntry; N],
    used: usize,
    arguments: PhantomData<&'a mut ()>,
}

/// There is no room for another call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no room for another call in this multicall")
    }
}

impl core::error::Error for Full {}

/// The place of a call in a [`Multicall`], by which its result is found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CallIndex(usize);

impl<const N: usize> Default for Multicall<'_, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a, const N: usize> Multicall<'a, N> {
    /// No calls yet.
    pub const fn new() -> Self {
        Self {
            entries: [const { MulticallEntry { op: 0, result: 0, args: [0; 6] } }; N],
            used: 0,
            arguments: PhantomData,
        }
    }

    /// How many calls it has.
    pub const fn len(&self) -> usize {
        self.used
    }

    /// Whether it has no call.
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Adds a command with its argument, which Xen fills in.
    ///
    /// # Errors
    /// When there are `N` calls already.
    pub fn add<C: Command>(&mut self, argument: &'a mut C) -> Result<CallIndex, Full> {
        let pointer = core::ptr::from_mut(argument).expose_provenance();
        // SAFETY: `Command` promises that the call reaches only the argument, which stays borrowed until the call
        // is made (`'a` is part of this type, and `run` takes it by value).
        unsafe { self.add_raw(C::NR, [C::CMD, pointer, 0, 0, 0]) }
    }

    /// Adds any call.
    ///
    /// # Errors
    /// When there are `N` calls already.
    ///
    /// # Safety
    /// When [`run`](Self::run) is called, making this call is sound in the sense of [`Hypercall::hypercall`].
    pub unsafe fn add_raw(&mut self, nr: HypercallNr, args: [usize; 5]) -> Result<CallIndex, Full> {
        let entry = self.entries.get_mut(self.used).ok_or(Full)?;
        let [a, b, c, d, e] = args.map(|arg| arg as u64);
        *entry = MulticallEntry { op: nr.0 as u64, result: 0, args: [a, b, c, d, e, 0] };
        let index = CallIndex(self.used);
        self.used += 1;
        Ok(index)
    }

    /// Makes the calls.
    ///
    /// # Errors
    /// `EINVAL` from within another multicall, `EFAULT`; some of the calls may have been made then.
    pub fn run(mut self, xen: &(impl Hypercall + ?Sized)) -> Result<Results<N>, Errno> {
        let pointer = self.entries.as_mut_ptr().expose_provenance();
        let args = [pointer, self.used, 0, 0, 0];
        // SAFETY: the call reads and writes `used` entries, exclusively borrowed here; what the calls in them reach was
        // vouched for when they were added.
        Errno::check(unsafe { xen.hypercall(HypercallNr::MULTICALL, args) })?;
        Ok(Results { entries: self.entries, used: self.used })
    }
}

/// The results of the calls of a [`Multicall`].
#[derive(Clone, Debug)]
pub struct Results<const N: usize> {
    entries: [MulticallEntry; N],
    used: usize,
}

impl<const N: usize> Results<N> {
    /// The result of one call; none for an index of another multicall with more calls.
    pub fn get(&self, index: CallIndex) -> Option<Result<usize, Errno>> {
        self.iter().nth(index.0)
    }

    /// All results, in the order of the calls.
    pub fn iter(&self) -> impl Iterator<Item = Result<usize, Errno>> + '_ {
        // Of an entry that Xen is done with only the result is defined.
        self.entries.iter().take(self.used).map(|entry| Errno::check(entry.result as isize))
    }

    /// Whether no call failed.
    pub fn all_succeeded(&self) -> bool {
        self.iter().all(|result| result.is_ok())
    }
}
