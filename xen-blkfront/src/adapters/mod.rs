//! The disk as other crates' traits want it.

#[cfg(feature = "block-device-driver-v0-2")]
pub mod blocks;
#[cfg(any(feature = "embedded-io-v0-7", feature = "embedded-storage-v0-3"))]
mod bytes;
#[cfg(feature = "embedded-io-v0-7")]
pub mod cursor;
#[cfg(feature = "embedded-sdmmc-v0-10")]
pub mod sdmmc;
#[cfg(any(feature = "embedded-io-async-v0-7", feature = "embedded-storage-async-v0-4"))]
mod shared_bytes;
#[cfg(feature = "embedded-io-async-v0-7")]
pub mod shared_cursor;
#[cfg(feature = "embedded-storage-async-v0-4")]
pub mod shared_storage;
#[cfg(feature = "embedded-storage-v0-3")]
pub mod storage;
