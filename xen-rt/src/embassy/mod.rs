//! Tasks by embassy (feature `embassy`): an executor, the driver of `embassy_time`, critical sections.
//!
//! ```no_run
//! # #![no_main]
//! use embassy_time::{Duration, Ticker};
//! use xen_rt::embassy::Executor;
//! use xen_rt::{Guest, println};
//!
//! xen_rt::entry!(main);
//!
//! #[embassy_executor::task]
//! async fn tick() {
//!     let mut ticker = Ticker::every(Duration::from_millis(10));
//!     loop {
//!         ticker.next().await;
//!         println!("tick");
//!     }
//! }
//!
//! fn main(guest: Guest) -> ! {
//!     Executor::new(guest).run(|spawner| spawner.spawn(tick().expect("it is started once")))
//! }
//! ```
//!
//! The vCPU sleeps when no task has anything to do, until an event comes or the first time that a task waits for. Where an
//! executor runs, [`print!`](crate::print) does not wait for room on the console: a line that finds none is told of later. A task that
//! is to lose none writes by [`console::task`](crate::console::task).
//!
//! The driver's time is the kernel's, whose clock goes on over a suspend of the domain, in ticks of whatever
//! `embassy-time`'s features say, by default a microsecond. Up to 64 tasks of an executor wait for a time without extra
//! wake-ups.
//!
//! On a mock of Xen the same executor runs by the mock's time: [`Executor::on`]. Each thread has one, so that tests with
//! machines of their own run side by side.

mod executor;
#[cfg(not(feature = "hosted"))]
mod section;
mod time;
mod timers;

pub use executor::Executor;
pub(crate) use time::Heart;
