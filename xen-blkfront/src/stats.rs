//! What a disk counts.

/// What passed since the disk was connected first.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// What was submitted: reads, writes, flushes and so on.
    pub operations: u64,
    /// Requests sent: a long operation is several, and several that follow each other on the disk are one.
    pub requests: u64,
    /// Of those, the ones with segments in pages of their own (`BLKIF_OP_INDIRECT`).
    pub indirect: u64,
    /// Operations that went with another's request.
    pub merged: u64,
    /// Pages that the requests named, a page counted each time.
    pub segments: u64,
    /// Requests answered.
    pub responses: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Operations asked for once more: what the backend turned out not to support, or who of several failed.
    pub retries: u64,
    /// Bytes read, as far as answered.
    pub bytes_read: u64,
    /// Bytes written, as far as answered.
    pub bytes_written: u64,
    /// Bytes discarded, as far as answered.
    pub bytes_discarded: u64,
    /// Flushes answered.
    pub flushes: u64,
    /// Bytes copied between the caller's buffers and the pages shared with the backend.
    pub bytes_copied: u64,
    /// Events sent.
    pub notifications: u64,
    /// Times that the disk was connected to another backend.
    pub reconnects: u64,
    /// Operations that were under way then and somebody waited for: they were issued again.
    pub reissued: u64,
}

impl Stats {
    /// What changed the disk, as far as answered: so it is known whether that is more than at another time.
    pub(crate) fn written(&self) -> u64 {
        self.bytes_written.wrapping_add(self.bytes_discarded)
    }

    /// Adds what passed elsewhere.
    pub(crate) fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.requests += other.requests;
        self.indirect += other.indirect;
        self.merged += other.merged;
        self.segments += other.segments;
        self.responses += other.responses;
        self.errors += other.errors;
        self.retries += other.retries;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.bytes_discarded += other.bytes_discarded;
        self.flushes += other.flushes;
        self.bytes_copied += other.bytes_copied;
        self.notifications += other.notifications;
        self.reconnects += other.reconnects;
        self.reissued += other.reissued;
    }
}
