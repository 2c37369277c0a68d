//! What passed through a device.

/// Counters since the device was connected.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes in them.
    pub rx_bytes: u64,
    /// Slots they were in, without those of extra information.
    pub rx_slots: u64,
    /// Of these frames, the ones that are several segments in one.
    pub rx_gso: u64,
    /// Frames that arrived and were not delivered: with an error, with a checksum that is blank without leave, or too
    /// long for the caller's buffer.
    pub rx_dropped: u64,
    /// Frames handed to the backend.
    pub tx_frames: u64,
    /// Bytes in them.
    pub tx_bytes: u64,
    /// Slots they were in, with those of extra information.
    pub tx_slots: u64,
    /// Of these frames, the ones to be cut.
    pub tx_gso: u64,
    /// Slots of frames that the backend says it did not send.
    pub tx_errors: u64,
    /// Bytes copied to or from shared pages.
    pub copied_bytes: u64,
    /// Times the device began anew.
    pub reconnects: u64,
    /// Times the backend was notified.
    pub notifications: u64,
}
