//! Files that Wireshark opens.

use core::time::Duration;
use std::vec::Vec;

/// Frames of this length are kept whole.
const SNAPLEN: u32 = 0x4_0000;
const LINKTYPE_ETHERNET: u32 = 1;

/// A file in libpcap's classic format, with times in nanoseconds.
pub(super) fn file<'a>(frames: impl Iterator<Item = (Duration, &'a [u8])>) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_3c4d, 2 | 4 << 16, 0, 0, SNAPLEN, LINKTYPE_ETHERNET] {
        file.extend_from_slice(&u32::to_le_bytes(word));
    }
    for (time, bytes) in frames {
        let len = bytes.len() as u32;
        for word in [time.as_secs() as u32, time.subsec_nanos(), len, len] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(bytes);
    }
    file
}
