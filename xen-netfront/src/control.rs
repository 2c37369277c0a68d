//! The control ring: how the backend hashes packets to choose a queue, and which pages it keeps mapped.

use core::fmt;
use core::time::Duration;

use xen_evtchn::{Channel, Deadline, EventChannels, Progress};
use xen_gnttab::{Access, GrantTable, GrantedPage};
use xen_hypercall::{DomId, PAGE_SIZE, PageBox, Platform, Wait};
use xen_ring::Front;
use zerocopy::IntoBytes;

use crate::abi::*;
use crate::error::Violation;
use crate::queue::share_ring;
use crate::tx::broken;
use crate::{Error, Followup, NetFront};

/// Entries of a table that fit the page by which it is passed.
const WORDS: usize = PAGE_SIZE / 4;
const GREFS: usize = PAGE_SIZE / 8;
/// Questions that change nothing.
const ASKS: [u16; 3] = [CTRL_GET_HASH_FLAGS, CTRL_GET_HASH_MAPPING_SIZE, CTRL_GET_GREF_MAPPING_SIZE];

/// The ring, and a page for what does not fit its slots. One question is asked at a time.
///
/// The channel stands first, and so is closed first when it is dropped: no event comes for a ring that is gone.
pub(crate) struct Control<'x, P: Platform> {
    pub(crate) channel: Channel<'x, P>,
    pub(crate) ring: Front<Ctrl, GrantedPage<'x, P>>,
    page: GrantedPage<'x, P>,
    next: u16,
    /// Asked and not answered: the backend may look at the page still.
    open: Option<CtrlRequest>,
    broken: Option<Violation>,
    /// Something was set, which another backend does not know.
    pub(crate) changed: bool,
    /// What was set, once something was.
    settings: Option<PageBox<'x, P, Settings>>,
}

/// What was set, for a backend that does not know it, as far as there is room here: as much as Linux' backend takes.
struct Settings {
    algorithm: Option<u32>,
    types: Option<u32>,
    key: ([u8; KEY], Option<usize>),
    mapping: ([u32; MAPPING], Option<usize>),
    keeps_pages: bool,
    /// There was no room for something.
    incomplete: bool,
}

const KEY: usize = 40;
const MAPPING: usize = 128;

/// Questions to the backend, of one device: [`NetFront::control`]. Each waits for its answer.
pub struct ControlRing<'f, 'x, P: Platform, const QUEUES: usize> {
    front: &'f mut NetFront<'x, P, QUEUES>,
    /// Of all questions: a pause of the guest in one of them is not counted in the next.
    deadline: Deadline,
}

impl<P: Platform, const QUEUES: usize> fmt::Debug for ControlRing<'_, '_, P, QUEUES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlRing").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl<'x, P: Platform> Control<'x, P> {
    pub(crate) fn new(
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        backend: DomId,
    ) -> Result<Self, Error> {
        let ring = share_ring(grants, backend)?;
        let page = grants.share(backend, Access::ReadWrite)?;
        let channel = events.alloc_unbound(backend)?;
        let (next, open, broken) = (0, None, None);
        Ok(Self { channel, ring, page, next, open, broken, changed: false, settings: None })
    }

    /// The same pages for another backend, after a resume in a new domain. What was asked is not answered any more.
    pub(crate) fn restart(&mut self, events: &'x EventChannels<P>, backend: DomId) -> Result<(), Error> {
        self.ring.backing().regrant(backend)?;
        self.ring.restart().map_err(broken)?;
        self.page.regrant(backend)?;
        self.channel = events.alloc_unbound(backend)?;
        (self.open, self.broken) = (None, None);
        Ok(())
    }

    /// Asks, and waits for the answer, until `deadline`.
    fn ask(&mut self, kind: u16, data: [u32; 3], deadline: &mut Deadline) -> Result<u32, Error>
    where
        P: Wait,
    {
        self.settle(&mut *deadline)?;
        let request = CtrlRequest { id: self.next, kind, data };
        self.next = self.next.wrapping_add(1);
        self.ring.push(&request).map_err(broken)?;
        if self.ring.publish().map_err(broken)? {
            self.channel.notify()?;
        }
        self.open = Some(request);
        let response = self.settle(deadline)?.ok_or(Error::TimedOut)?;
        match response.status {
            CTRL_SUCCESS => {
                self.changed |= !ASKS.contains(&kind);
                Ok(response.data)
            }
            status => Err(Error::Refused(kind, status)),
        }
    }

    /// Waits for the answer to what was asked, if anything was.
    fn settle(&mut self, deadline: &mut Deadline) -> Result<Option<CtrlResponse>, Error>
    where
        P: Wait,
    {
        if let Some(violation) = self.broken {
            return Err(Error::Broken(violation));
        }
        let Some(asked) = self.open else { return Ok(None) };
        let events = self.channel.event_channels();
        loop {
            let seen = events.seq();
            if let Some(response) = self.ring.pop().map_err(broken)? {
                self.channel.done(Progress::Work);
                if response.id != asked.id || response.kind != asked.kind {
                    let violation = Violation::Id(response.id);
                    self.broken = Some(violation);
                    return Err(Error::Broken(violation));
                }
                self.open = None;
                self.channel.done(Progress::Work);
                return Ok(Some(response));
            }
            if self.ring.arm().map_err(broken)? {
                continue;
            }
            // Events without an answer are throttled. Between questions nobody looks, and one comes through.
            self.channel.done(Progress::Spurious);
            let until = deadline.until(events.platform().now()).ok_or(Error::TimedOut)?;
            events.wait_since(seen, Some(until));
        }
    }
}

impl<'x, P: Platform + Wait, const QUEUES: usize> NetFront<'x, P, QUEUES> {
    /// The control ring; none unless [`Config::control_ring`](crate::Config::control_ring) asked for it and the backend
    /// has one. The questions through it wait until `deadline` at most, pauses of the guest apart.
    pub fn control(&mut self, deadline: Duration) -> Option<ControlRing<'_, 'x, P, QUEUES>> {
        self.control.is_some().then_some(ControlRing { front: self, deadline: Deadline::new(deadline) })
    }
}

/// # Errors
/// All of these: [`Error::Refused`] with the question's kind and the status that the backend answered;
/// [`Error::TimedOut`]; [`Error::Closed`], [`Error::Broken`]. The frames go on in any case.
impl<P: Platform + Wait, const QUEUES: usize> ControlRing<'_, '_, P, QUEUES> {
    fn ask(&mut self, kind: u16, data: [u32; 3]) -> Result<u32, Error> {
        self.front.check()?;
        self.front.control.as_mut().ok_or(Error::Closed)?.ask(kind, data, &mut self.deadline)
    }

    /// Notes what the backend was told.
    fn remember(&mut self, note: impl FnOnce(&mut Settings)) {
        let platform = self.front.grants.platform();
        let Some(control) = &mut self.front.control else { return };
        let new = || Settings {
            algorithm: None,
            types: None,
            key: ([0; KEY], None),
            mapping: ([0; MAPPING], None),
            keeps_pages: false,
            incomplete: false,
        };
        let known = control.settings.take().or_else(|| PageBox::new(platform, new));
        control.settings = known.map(|mut settings| {
            note(&mut settings);
            settings
        });
    }

    /// Tells a backend that does not know it all that was set.
    fn repeat(&mut self, settings: &Settings) -> Result<(), Error> {
        if let Some(algorithm) = settings.algorithm {
            self.ask(CTRL_SET_HASH_ALGORITHM, [algorithm, 0, 0])?;
        }
        if let Some(types) = settings.types {
            self.ask(CTRL_SET_HASH_FLAGS, [types, 0, 0])?;
        }
        if let Some(key) = settings.key.1.and_then(|len| settings.key.0.get(..len)) {
            self.tell_key(key)?;
        }
        if let Some(mapping) = settings.mapping.1.and_then(|len| settings.mapping.0.get(..len)) {
            self.tell_mapping(mapping)?;
        }
        if settings.keeps_pages {
            self.tell_pages()?;
        }
        Ok(())
    }

    fn tell_key(&mut self, key: &[u8]) -> Result<(), Error> {
        self.ask_with(key, CTRL_SET_HASH_KEY, |gref| [gref, key.len() as u32, 0]).map(drop)
    }

    fn tell_mapping(&mut self, mapping: &[u32]) -> Result<(), Error> {
        let queues = self.front.connected as u32;
        if let Some(queue) = mapping.iter().find(|queue| **queue >= queues) {
            return Err(Error::Queue(*queue));
        }
        self.ask(CTRL_SET_HASH_MAPPING_SIZE, [mapping.len() as u32, 0, 0])?;
        for (index, part) in mapping.chunks(WORDS).enumerate() {
            let offset = (index * WORDS) as u32;
            self.ask_with(part.as_bytes(), CTRL_SET_HASH_MAPPING, |gref| [gref, part.len() as u32, offset])?;
        }
        Ok(())
    }

    /// Asks with bytes in the page. They are not touched while an earlier question, which timed out, is open.
    fn ask_with(
        &mut self,
        bytes: &[u8],
        kind: u16,
        data: impl FnOnce(u32) -> [u32; 3],
    ) -> Result<u32, Error> {
        self.front.check()?;
        let control = self.front.control.as_mut().ok_or(Error::Closed)?;
        control.settle(&mut self.deadline)?;
        control.page.write_bytes(0, bytes).map_err(|_| Error::Length(bytes.len()))?;
        let gref = control.page.gref().0;
        self.ask(kind, data(gref))
    }

    /// Chooses how packets are hashed: [`HASH_ALGORITHM_TOEPLITZ`], or [`HASH_ALGORITHM_NONE`] for no more.
    #[allow(clippy::missing_errors_doc, reason = "told above")]
    pub fn set_hash_algorithm(&mut self, algorithm: u32) -> Result<(), Error> {
        if algorithm != HASH_ALGORITHM_NONE {
            // Before the backend is asked: a frame may be here before the answer, or though the answer came too late. And for
            // ever: frames that were hashed may be under way.
            self.front.hashes = true;
            if let Some(lent) = &self.front.lent {
                lent.expect_hashes();
            }
        }
        self.ask(CTRL_SET_HASH_ALGORITHM, [algorithm, 0, 0])?;
        self.remember(|settings| settings.algorithm = Some(algorithm));
        Ok(())
    }

    /// What the backend can hash.
    #[allow(clippy::missing_errors_doc, reason = "told above")]
    pub fn hash_types(&mut self) -> Result<HashTypes, Error> {
        self.ask(CTRL_GET_HASH_FLAGS, [0; 3]).map(HashTypes::from_bits_retain)
    }

    /// Chooses what is hashed; nothing: the backend chooses queues as it likes.
    #[allow(clippy::missing_errors_doc, reason = "told above")]
    pub fn set_hash_types(&mut self, types: HashTypes) -> Result<(), Error> {
        self.ask(CTRL_SET_HASH_FLAGS, [types.bits(), 0, 0])?;
        self.remember(|settings| settings.types = Some(types.bits()));
        Ok(())
    }

    /// Sets the key of the hash.
    ///
    /// # Errors
    /// Also [`Error::Length`] for one that is longer than a page.
    pub fn set_hash_key(&mut self, key: &[u8]) -> Result<(), Error> {
        self.tell_key(key)?;
        self.remember(|settings| {
            settings.incomplete |= !keep(&mut settings.key, key);
        });
        Ok(())
    }

    /// The most entries that the table from hashes to queues may have; none: the backend has none, and divides.
    #[allow(clippy::missing_errors_doc, reason = "told above")]
    pub fn hash_mapping_size(&mut self) -> Result<u32, Error> {
        self.ask(CTRL_GET_HASH_MAPPING_SIZE, [0; 3])
    }

    /// Sets the table from hashes to queues: the queue of a packet is what stands at its hash modulo the length.
    ///
    /// # Errors
    /// Also [`Error::Queue`] for a queue that there is not.
    pub fn set_hash_mapping(&mut self, mapping: &[u32]) -> Result<(), Error> {
        self.tell_mapping(mapping)?;
        self.remember(|settings| {
            settings.incomplete |= !keep(&mut settings.mapping, mapping);
        });
        Ok(())
    }

    /// Lets the backend keep the device's pages mapped, as many as it can, so that it need not map or copy by grant for
    /// each frame. Returns how many those are. They come back when the backend has closed.
    ///
    /// A live migration does not see what is written by such a mapping: whoever has [received](NetFront::receive_pages) into pages of
    /// his own [marks](xen_gnttab::GrantedPage::mark_written) those that are not looked at at once.
    #[allow(clippy::missing_errors_doc, reason = "told above")]
    pub fn map_pages(&mut self) -> Result<u32, Error> {
        let mapped = self.tell_pages()?;
        self.remember(|settings| settings.keeps_pages = true);
        Ok(mapped)
    }

    fn tell_pages(&mut self) -> Result<u32, Error> {
        let mut mapped = 0;
        for queue in 0..QUEUES {
            // Those of a queue that was taken stay as they are.
            if self.front.queues.get(queue).is_none_or(Option::is_none) {
                continue;
            }
            let mut left = self.ask(CTRL_GET_GREF_MAPPING_SIZE, [queue as u32, 0, 0])? as usize;
            let mut from = 0;
            while left > 0 {
                let mut entries = [GrefEntry::default(); GREFS];
                let pages = self.front.queues.get(queue).and_then(Option::as_ref).ok_or(Error::Closed)?;
                let rest = pages.tx.pool.grefs().map(|gref| (gref, GREF_READONLY));
                let rest = rest.chain(pages.rx.grefs().map(|gref| (gref, 0))).skip(from).take(left);
                let mut count = 0;
                for (entry, (gref, flags)) in entries.iter_mut().zip(rest) {
                    *entry = GrefEntry { gref: gref.0, flags, status: 0 };
                    count += 1;
                }
                if count == 0 {
                    break;
                }
                let list = entries.get(..count).unwrap_or_default().as_bytes();
                self.ask_with(list, CTRL_ADD_GREF_MAPPING, |gref| [queue as u32, gref, count as u32])?;
                (from, left, mapped) = (from + count, left - count, mapped + count as u32);
            }
        }
        Ok(mapped)
    }
}

/// Keeps a copy, if there is room for it.
fn keep<T: Copy, const N: usize>((place, len): &mut ([T; N], Option<usize>), values: &[T]) -> bool {
    *len = place.get_mut(..values.len()).map(|place| {
        place.copy_from_slice(values);
        values.len()
    });
    len.is_some()
}

impl<'x, P: Platform + Wait, const QUEUES: usize> NetFront<'x, P, QUEUES> {
    /// Tells a backend that does not know it all that was set by the ring.
    pub(crate) fn repeat_settings(&mut self, deadline: Duration) {
        let Some(control) = self.control.as_mut().filter(|control| control.changed) else { return };
        let settings = control.settings.take();
        let told = settings.as_ref().is_some_and(|settings| {
            let mut ring = ControlRing { front: self, deadline: Deadline::new(deadline) };
            ring.repeat(settings).is_ok() && !settings.incomplete
        });
        if !told {
            self.followup |= Followup::CONTROL;
        }
        if let Some(control) = &mut self.control {
            control.settings = settings;
        }
    }
}
