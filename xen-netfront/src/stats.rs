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

impl Stats {
    /// Adds what passed elsewhere.
    pub(crate) fn add(&mut self, other: Self) {
        self.rx_frames += other.rx_frames;
        self.rx_bytes += other.rx_bytes;
        self.rx_slots += other.rx_slots;
        self.rx_gso += other.rx_gso;
        self.rx_dropped += other.rx_dropped;
        self.tx_frames += other.tx_frames;
        self.tx_bytes += other.tx_bytes;
        self.tx_slots += other.tx_slots;
        self.tx_gso += other.tx_gso;
        self.tx_errors += other.tx_errors;
        self.copied_bytes += other.copied_bytes;
        self.reconnects += other.reconnects;
        self.notifications += other.notifications;
    }
}
