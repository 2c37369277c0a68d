//! What the devices of all stacks have in common: two private buffers, and the way to a network device or to the place of one.

use core::fmt;
use core::marker::PhantomData;
#[cfg(feature = "smoltcp-v0-14-segmentation")]
use core::num::{NonZeroU16, NonZeroUsize};

use xen_hypercall::Platform;

use super::coalesce::Coalescer;
use super::vet::vet;
use crate::packet::ETHERNET;
use crate::{Card, Error, Features, NetFront};
#[cfg(feature = "smoltcp-v0-14-segmentation")]
use crate::{Gso, GsoKind, TxMeta, front::LARGE};

/// The longest frame while there is no device to ask.
const LONGEST: usize = 1500 + ETHERNET;

/// What a stack sends and receives by: a device of its own, or the [place](Card) of one.
pub trait Hold<'x, P: Platform, const QUEUES: usize>: sealed::Sealed {
    /// Calls `f` with the device, and with what tells whether frames that are put together are of another user.
    #[doc(hidden)]
    fn with<R>(&mut self, f: impl FnOnce(&mut NetFront<'x, P, QUEUES>, Option<&mut u32>) -> R) -> Option<R>;
    /// The MTU, and what the backend takes.
    #[doc(hidden)]
    fn terms(&self) -> Option<(u32, Features)>;
}

mod sealed {
    pub trait Sealed {}
    impl<P: xen_hypercall::Platform, const QUEUES: usize> Sealed for crate::NetFront<'_, P, QUEUES> {}
    impl<P: xen_hypercall::Platform, const QUEUES: usize> Sealed for &crate::Card<'_, P, QUEUES> {}
}

impl<'x, P: Platform, const QUEUES: usize> Hold<'x, P, QUEUES> for NetFront<'x, P, QUEUES> {
    #[inline]
    fn with<R>(&mut self, f: impl FnOnce(&mut Self, Option<&mut u32>) -> R) -> Option<R> {
        Some(f(self, None))
    }

    fn terms(&self) -> Option<(u32, Features)> {
        Some((self.mtu(), self.features()))
    }
}

impl<'x, P: Platform, const QUEUES: usize> Hold<'x, P, QUEUES> for &Card<'x, P, QUEUES> {
    fn with<R>(&mut self, f: impl FnOnce(&mut NetFront<'x, P, QUEUES>, Option<&mut u32>) -> R) -> Option<R> {
        self.with_stamp(|front, stamp| f(front, Some(stamp)))
    }

    fn terms(&self) -> Option<(u32, Features)> {
        self.ask(None, |front| Some((front.mtu(), front.features())))
    }
}

/// The way out.
pub(super) struct Sender<'x, P: Platform, const QUEUES: usize, F> {
    pub(super) hold: F,
    pub(super) pending: Pending,
    _device: PhantomData<&'x P>,
}

/// Frames that are put together, and of which device that is.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) coalescer: Coalescer,
    stamp: u32,
}

impl Pending {
    /// Forgets what was put together in another device, or was mixed with what another user puts together.
    #[inline]
    pub(super) fn of(&mut self, stamp: Option<&mut u32>) -> &mut Coalescer {
        if let Some(stamp) = stamp.filter(|stamp| **stamp != self.stamp) {
            *stamp = stamp.wrapping_add(1);
            *self = Self { coalescer: Coalescer::default(), stamp: *stamp };
        }
        &mut self.coalescer
    }
}

impl<'x, P: Platform, const QUEUES: usize, F: Hold<'x, P, QUEUES>> Sender<'x, P, QUEUES, F> {
    #[inline]
    pub(super) fn with<R>(
        &mut self,
        f: impl FnOnce(&mut NetFront<'x, P, QUEUES>, &mut Coalescer) -> R,
    ) -> Option<R> {
        let Self { hold, pending, .. } = self;
        hold.with(|front, stamp| f(front, pending.of(stamp)))
    }
}

/// Whether the stack may send a frame: there are slots for what waits, and pages and slots for one more, with its
/// extra information.
pub(super) fn has_room<P: Platform, const QUEUES: usize>(
    front: &mut NetFront<'_, P, QUEUES>,
    coalescer: &Coalescer,
) -> bool {
    let coalesces = front.features().intersects(Features::GSO_V4 | Features::GSO_V6);
    let wanted = if coalesces { 3 } else { 1 };
    front.has_room_beside(coalescer.slots(), wanted)
}

/// A device for a stack.
pub(super) struct Stack<'x, P: Platform, B, const QUEUES: usize, F> {
    pub(super) sender: Sender<'x, P, QUEUES, F>,
    pub(super) received: B,
    pub(super) to_send: B,
    /// Frames that arrived with a wrong checksum.
    pub(super) wrong: u64,
}

impl<'x, P, B, const QUEUES: usize, F> Stack<'x, P, B, QUEUES, F>
where
    P: Platform,
    B: AsRef<[u8]> + AsMut<[u8]>,
    F: Hold<'x, P, QUEUES>,
{
    pub(super) fn new(hold: F, received: B, to_send: B) -> Self {
        let sender = Sender { hold, pending: Pending::default(), _device: PhantomData };
        Self { sender, received, to_send, wrong: 0 }
    }

    /// Shows the backend what the stack has sent.
    pub(super) fn publish(&mut self) -> Result<(), Error> {
        let published = self.sender.with(|front, coalescer| {
            let pushed = coalescer.push(front);
            front.publish().and(pushed)
        });
        published.unwrap_or(Err(Error::Closed))
    }

    /// The longest frame that is not large.
    pub(super) fn longest(&self) -> usize {
        let longest = self.sender.hold.terms().map_or(LONGEST, |(mtu, _)| mtu as usize + ETHERNET);
        longest.min(self.to_send.as_ref().len())
    }

    /// The longest frame that the stack may have cut: as many whole segments as the buffer has room for. None if the backend
    /// does not cut, or there is no room for more than one. In IPv4 alone: smoltcp 0.14.0 drops those of IPv6.
    #[cfg(feature = "smoltcp-v0-14-segmentation")]
    pub(super) fn large(&self) -> Option<NonZeroUsize> {
        const HEADERS: usize = ETHERNET + 40;
        let most = crate::FRAME_MAX.min(self.to_send.as_ref().len());
        let segment = self.longest().checked_sub(HEADERS)?;
        let segments = most.checked_sub(HEADERS)?.checked_div(segment).filter(|count| *count > 1)?;
        let cuts = self.sender.hold.terms().is_some_and(|(_, features)| features.contains(Features::GSO_V4));
        if cuts { NonZeroUsize::new(HEADERS + segments * segment) } else { None }
    }

    pub(super) fn token(&mut self) -> ToSend<'_, 'x, P, QUEUES, F> {
        ToSend {
            sender: &mut self.sender,
            frame: self.to_send.as_mut(),
            #[cfg(feature = "smoltcp-v0-14-segmentation")]
            size: None,
        }
    }

    /// The frame that arrived, and room for an answer.
    pub(super) fn received(&mut self, len: usize) -> Option<(&mut [u8], ToSend<'_, 'x, P, QUEUES, F>)> {
        let Self { sender, received, to_send, .. } = self;
        let to_send = ToSend {
            sender,
            frame: to_send.as_mut(),
            #[cfg(feature = "smoltcp-v0-14-segmentation")]
            size: None,
        };
        Some((received.as_mut().get_mut(..len)?, to_send))
    }
}

/// The length of the next frame that the stack may see, which may answer it at once, so that there must be room for that.
#[inline]
pub(super) fn next<P: Platform, const QUEUES: usize>(
    front: &mut NetFront<'_, P, QUEUES>,
    coalescer: &Coalescer,
    received: &mut [u8],
    wrong: &mut u64,
) -> Option<usize> {
    if !has_room(front, coalescer) {
        return None;
    }
    // Ends: the device has no more frames than its rings have slots.
    loop {
        let meta = front.receive_with(received).ok()??;
        if received.get_mut(..meta.len).is_some_and(|frame| vet(frame, meta.checksum)) {
            return Some(meta.len);
        }
        *wrong += 1;
    }
}

/// Room for a frame to send.
pub struct ToSend<'a, 'x, P: Platform, const QUEUES: usize = 1, F = NetFront<'x, P, QUEUES>> {
    sender: &'a mut Sender<'x, P, QUEUES, F>,
    frame: &'a mut [u8],
    /// How long the segments are that it is to be cut in.
    #[cfg(feature = "smoltcp-v0-14-segmentation")]
    pub(super) size: Option<NonZeroU16>,
}

impl<'x, P: Platform, const QUEUES: usize, F: Hold<'x, P, QUEUES>> ToSend<'_, 'x, P, QUEUES, F> {
    /// Gets a frame of so many bytes from `f`, and sends it.
    pub(super) fn fill<R>(mut self, len: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
        let len = len.min(self.frame.len());
        let result = f(&mut self.frame[..len]);
        // There was room when the token was made. A device that broke since loses frames, as networks do.
        let _ = self.send(len);
        result
    }

    fn send(&mut self, len: usize) -> Result<(), Error> {
        let frame = self.frame.get(..len).unwrap_or_default();
        #[cfg(feature = "smoltcp-v0-14-segmentation")]
        let size = self.size;
        let sent = self.sender.with(|front, coalescer| {
            #[cfg(feature = "smoltcp-v0-14-segmentation")]
            if let Some(size) = size {
                // What was sent before it goes first.
                coalescer.push(front)?;
                let gso = Some(Gso { kind: GsoKind::TcpV4, size: size.get() });
                front.transmit_with(&[frame], TxMeta { checksum: crate::Checksum::Blank, gso })?;
                // The backend can be at work on it while the next one is made.
                return front.show_sent(frame);
            }
            coalescer.send(front, frame)
        });
        sent.unwrap_or(Err(Error::Closed))
    }
}

impl<P: Platform, const QUEUES: usize, F> fmt::Debug for ToSend<'_, '_, P, QUEUES, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ToSend")
    }
}

/// Whether there is room for a large frame, which the stack may send by itself. It sends none in answer to a frame.
#[cfg(feature = "smoltcp-v0-14-segmentation")]
pub(super) fn has_room_for_large<P: Platform, const QUEUES: usize>(
    front: &mut NetFront<'_, P, QUEUES>,
    coalescer: &Coalescer,
) -> bool {
    front.has_room_beside(coalescer.slots(), LARGE)
}
