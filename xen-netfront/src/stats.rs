//! What passed through a device.

/// Counters since the device was connected.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes in them.
    pub rx_bytes: u64,
    /// Frames that arrived and were not delivered: with an error, without checksum, in parts, or too long.
    pub rx_dropped: u64,
    /// Frames handed to the backend.
    pub tx_frames: u64,
    /// Bytes in them.
    pub tx_bytes: u64,
    /// Frames that the backend says it did not send.
    pub tx_errors: u64,
    /// Times the backend was notified.
    pub notifications: u64,
}
