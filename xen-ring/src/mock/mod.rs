//! Memory to try rings in, and far sides that keep to no rule.
//!
//! [`SharedPages`] is memory with any number of owners: give one handle to the [`Front`](crate::Front) and one to
//! the [`Back`](crate::Back), and they talk as two domains do that share these pages. A test of how code stands a bad
//! peer gives the second handle to a [`HostileBack`] or [`HostilePeer`] instead; they write any index and any byte,
//! by method or as a list of [`BackOp`] or [`PeerOp`] that a property test or a fuzzer made up. [`Meddled`] gets in
//! between two accesses of the code under test, where another domain could change what was just checked. [`model`] is what the
//! rings themselves have to do.
//!
//! ```
//! use xen_ring::mock::{BackOp, Field, HostileBack, SharedPages};
//! use xen_ring::{Front, Protocol, RingError};
//!
//! struct Echo;
//! impl Protocol for Echo {
//!     type Request = u64;
//!     type Response = u32;
//! }
//!
//! let pages = SharedPages::new(1);
//! let mut front = Front::<Echo, _>::init(pages.clone())?;
//! let mut back = HostileBack::<Echo, _>::new(pages)?;
//!
//! front.push(&7)?;
//! front.publish()?;
//! back.apply(BackOp::Answer { count: 1 });
//! assert_eq!(front.pop()?, Some(7));
//!
//! // A second response, to a request that there never was.
//! back.apply(BackOp::Advance { field: Field::RspProd, by: 1 });
//! assert!(matches!(front.pop(), Err(RingError::Broken(_))));
//! # Ok::<(), RingError>(())
//! ```

mod back;
mod meddle;
pub mod model;
mod pages;
mod peer;

pub use back::{BackOp, Field, HostileBack};
pub use meddle::Meddled;
pub use pages::{PAGE_SIZE, SharedPages};
pub use peer::{Cursor, HostilePeer, PeerOp};
