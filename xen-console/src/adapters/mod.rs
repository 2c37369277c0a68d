//! The console under traits of others. Each feature carries the version of the crate that it is for.

#[cfg(feature = "embedded-io-v0-7")]
mod embedded_io;
#[cfg(feature = "embedded-io-async-v0-7")]
mod embedded_io_async;

#[cfg(feature = "embedded-io-v0-7")]
pub use self::embedded_io::{ConsoleIo, IoError};
