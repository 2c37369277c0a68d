//! The disk as other crates' traits want it.

#[cfg(feature = "embedded-sdmmc-v0-10")]
pub mod sdmmc;
