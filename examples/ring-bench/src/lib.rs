//! Both ends of two slot rings, in Rust on `xen-ring` and in C on the macros of Xen's `io/ring.h`, with the same functions:
//! what they do to a page can be compared byte by byte, and what they cost instruction by instruction.
#![allow(missing_docs, reason = "no library for others")]

#[cfg(ring_h)]
pub mod c;
pub mod drivers;
pub mod rust;
pub mod tasks;
pub mod virtio;

/// The page that a ring is in.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct Page(pub [u8; 4096]);

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words = self.0[..16].chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
        write!(f, "{:?}, {:?}", words.collect::<Vec<_>>(), &self.0[64..])
    }
}

/// Both ends of a ring of records of `REQ` and `RSP` words.
///
/// Each function returns how many records it moved, and whether to notify or whether there is more.
pub trait Ends<Req, Rsp> {
    /// Pushes as many requests as fit, and publishes.
    fn push(&mut self, requests: &[Req]) -> (u32, bool);
    /// Takes responses until `out` is full or there are none, and asks for the next.
    fn pop(&mut self, out: &mut [Rsp]) -> (u32, bool);
    /// Takes requests until `out` is full or there are none, and asks for the next.
    fn back_pop(&mut self, out: &mut [Req]) -> (u32, bool);
    /// Answers as many requests as were taken, and publishes.
    fn back_push(&mut self, responses: &[Rsp]) -> (u32, bool);
}

/// A request and a response of a network device, of 12 and 4 bytes.
pub type NetReq = [u32; 3];
pub type NetRsp = [u16; 2];
/// A request and a response of a block device, of 112 and 16 bytes.
pub type BlkReq = [u64; 14];
pub type BlkRsp = [u64; 2];

/// Something that is asked for and answered.
pub trait Turns {
    /// Asks for so many at once, lets the far side answer, and takes the answers.
    fn turn(&mut self, depth: usize);
}
