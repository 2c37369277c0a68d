//! One connection to xenstore for any number of tasks.
//!
//! [`SharedStore`] owns the connection. One task is its [`Runner`], which alone takes in what arrives. All others ask by a
//! [`Client`], of which there are as many as are wanted. A question is pending until its answer is there, and nothing here waits in
//! any other way, so a daemon that hangs holds up those who ask it, and nobody else.
//!
//! Each future can be dropped at any time. A question that was asked is answered to nobody then, a [`Transaction`] comes to nothing, and
//! a [`Watching`] ends. There are no deadlines: who does not want to wait any longer drops the future.
//!
//! ```
//! use core::future::Future;
//! use core::pin::pin;
//! use core::task::{Context, Waker};
//! use xen_evtchn::EventChannels;
//! use xen_hypercall::{DomId, VcpuId, mock::MockXen};
//! use xen_xenstore::shared::{Client, SharedStore};
//! use xen_xenstore::{Error, Xenstore, mock::MockXenstored};
//! # use xen_hypercall::mock::MockDomain;
//!
//! // A task.
//! async fn count_starts(client: Client<'_, '_, MockDomain>) -> Result<u32, Error> {
//!     let starts = client.transaction(async |transaction| {
//!         let starts = transaction.read_optional("data/starts").await?.unwrap_or(0) + 1;
//!         transaction.write_display("data/starts", starts).await?;
//!         Ok(starts)
//!     });
//!     let starts = starts.await?;
//!     // Wakes when somebody writes the node.
//!     let mut wanted = client.watch("data/wanted").await?;
//!     while client.read_optional::<u32>("data/wanted").await?.is_none() {
//!         wanted.changed().await?;
//!     }
//!     Ok(starts)
//! }
//!
//! let xen = MockXen::new();
//! xen_evtchn::mock::install(&xen);
//! let daemon = MockXenstored::new(&xen);
//! let guest = xen.domain(DomId(1));
//! daemon.connect(&guest);
//! let token = guest.boot()?;
//! let events = EventChannels::new(&token)?;
//!
//! let store = SharedStore::new(Xenstore::new(&events)?);
//! let mut runner = pin!(store.runner().run());
//! let mut task = pin!(count_starts(store.client()));
//! // An executor would poll each when it is woken, and sleep by `EventChannels::wait_since` when none is.
//! let mut cx = Context::from_waker(Waker::noop());
//! let starts = loop {
//!     if let std::task::Poll::Ready(starts) = task.as_mut().poll(&mut cx) {
//!         break starts?;
//!     }
//!     assert!(runner.as_mut().poll(&mut cx).is_pending());
//!     xen.step();
//!     events.dispatch(VcpuId(0));
//!     if daemon.read("/local/domain/1/data/starts").is_some() {
//!         daemon.write("/local/domain/1/data/wanted", "7");
//!     }
//! };
//! assert_eq!(starts, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batch;
mod client;
mod conversation;
mod requests;
mod runner;
mod state;
mod transaction;
mod waiters;
mod watching;
mod work;

use core::cell::{Cell, RefCell};
use core::fmt;
use core::task::{Context, Poll};

use xen_hypercall::{Platform, Wait};

use crate::{Error, Stats, Xenstore};
pub use client::Client;
pub use conversation::Conversation;
pub use requests::ShutdownRequests;
pub use runner::Runner;
use state::State;
pub use state::{BYTES, QUESTIONS, TRANSACTIONS};
pub use transaction::Transaction;
pub use watching::Watching;

/// A connection to xenstore that tasks share: see [the module](self).
///
/// It has room for [`QUESTIONS`] questions, and [`TRANSACTIONS`] transactions, at a time; who asks more waits for room. Up to 64 tasks
/// wait for that at a time; more of them keep each other busy, and wait all the same. A task whose answers are there and that is not polled
/// keeps their places. An answer of more than [`BYTES`] is kept where it came in, and
/// nothing else comes in until its task has looked at it, or is dropped.
///
/// It is for the tasks of one vCPU. A waker that is called here is to let its task be polled later, as those of executors do.
pub struct SharedStore<'x, P: Platform + Wait> {
    state: RefCell<State<'x, P>>,
    /// What was dropped, a bit for each place. Something may be dropped with a waker while the state is in use.
    dropped_questions: Cell<u16>,
    dropped_transactions: Cell<u8>,
    dropped_watches: Cell<u128>,
}

impl<'x, P: Platform + Wait> SharedStore<'x, P> {
    /// Shares a connection.
    pub fn new(xs: Xenstore<'x, P>) -> Self {
        Self {
            state: RefCell::new(State::new(xs)),
            dropped_questions: Cell::new(0),
            dropped_transactions: Cell::new(0),
            dropped_watches: Cell::new(0),
        }
    }

    /// Returns the runner: the future that takes in responses and watch events. One task has to poll it; without it no response arrives.
    pub fn runner(&self) -> Runner<'_, 'x, P> {
        Runner::new(self)
    }

    /// Returns a client: a handle by which a task asks. It is `Copy`; each task has one of its own.
    pub fn client(&self) -> Client<'_, 'x, P> {
        Client::new(self)
    }

    /// The connection, for who blocks: to suspend the domain, for one. No task is polled meanwhile.
    ///
    /// Waits first for what tasks have asked, at most as long as the connection has [patience](Xenstore::set_patience); what is not
    /// answered by then fails with [`Error::TimedOut`], as does what nobody has looked at and is long. If the connection is made anew,
    /// as it is in a new domain, transactions that are under way run again, and the watches are set again and fire.
    ///
    /// # Panics
    /// When a waker or an answer's closure calls it.
    pub fn block<R>(&self, f: impl FnOnce(&mut Xenstore<'x, P>) -> R) -> R {
        let result = self.state.borrow_mut().block(f);
        self.with(|_| ());
        result
    }

    /// The connection for itself again, as [`block`](Self::block) gives it.
    pub fn into_inner(self) -> Xenstore<'x, P> {
        self.with(|_| ());
        self.state.into_inner().into_inner()
    }

    /// What passed since the connection was made.
    pub fn stats(&self) -> Stats {
        self.with(|state| state.xs.stats()).unwrap_or_default()
    }

    /// How many places are taken at the moment, of [`QUESTIONS`] and of [`TRANSACTIONS`]: those of tasks that have gone are given back
    /// when the daemon has answered.
    pub fn places_taken(&self) -> (usize, usize) {
        self.with(|state| state.taken()).unwrap_or_default()
    }

    /// Uses the state, then tidies up what was dropped. None: it is in use, by who calls the waker that has called this.
    fn with<R>(&self, f: impl FnOnce(&mut State<'x, P>) -> R) -> Option<R> {
        let mut state = self.state.try_borrow_mut().ok()?;
        let result = f(&mut state);
        self.tidy_up(&mut state);
        Some(result)
    }

    /// The same for a task, which looks again later when the state is in use.
    fn poll<R>(
        &self,
        cx: &mut Context<'_>,
        f: impl FnOnce(&mut State<'x, P>, &mut Context<'_>) -> Poll<Result<R, Error>>,
    ) -> Poll<Result<R, Error>> {
        self.with(|state| f(state, cx)).unwrap_or_else(|| {
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    fn tidy_up(&self, state: &mut State<'x, P>) {
        loop {
            let (questions, transactions) = (self.dropped_questions.take(), self.dropped_transactions.take());
            let watches = self.dropped_watches.take();
            if (questions, transactions, watches) == (0, 0, 0) {
                break;
            }
            (0..u16::BITS).filter(|bit| questions & 1 << bit != 0).for_each(|bit| state.forget(bit as usize));
            let transactions = (0..u8::BITS).filter(|bit| transactions & 1 << bit != 0);
            transactions.for_each(|bit| state.leave_transaction(bit as usize));
            let watches = (0..u128::BITS).filter(|bit| watches & 1 << bit != 0);
            watches.for_each(|bit| state.leave_watch(bit as usize));
            state.announce();
        }
    }

    fn drop_watches(&self, watches: u128) {
        self.dropped_watches.set(self.dropped_watches.get() | watches);
        self.with(|_| ());
    }
}

impl<P: Platform + Wait> fmt::Debug for SharedStore<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedStore").finish_non_exhaustive()
    }
}
