//! Calls that wait: whole transfers of any length, as many requests at once as there can be.

use core::time::Duration;

use xen_evtchn::Deadline;
use xen_hypercall::{Platform, Wait};

use crate::abi::{MAX_SEGMENTS, SECTOR};
use crate::{BlkFront, Error, State, Ticket};

/// Parts of a transfer that are under way at once, at most.
const PARTS: usize = 16;

/// The parts of one transfer that are under way, each with the part of the buffer that it is for.
type Window = [Option<(Ticket, usize, usize)>; PARTS];

/// The caller's buffer.
enum Buffer<'b> {
    Read(&'b mut [u8]),
    Write(&'b [u8]),
}

impl Buffer<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Read(out) => out.len(),
            Self::Write(data) => data.len(),
        }
    }
}

impl<'x, P: Platform + Wait> BlkFront<'x, P> {
    /// Reads sectors, as many as `out` has room for.
    ///
    /// # Errors
    /// As [`submit_read`](Self::submit_read); what the backend says; [`Error::TimedOut`]. What is in `out` is
    /// undetermined then.
    pub fn read(&mut self, lba: u64, out: &mut [u8]) -> Result<(), Error> {
        self.move_all(lba, Buffer::Read(out))
    }

    /// Writes sectors.
    ///
    /// # Errors
    /// As [`submit_write`](Self::submit_write); what the backend says; [`Error::TimedOut`]. Any of the sectors
    /// may have been written then. After a timeout the backend may still write what it had got by then; nothing is issued
    /// to it, or to another one, any more.
    pub fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), Error> {
        self.move_all(lba, Buffer::Write(data))
    }

    /// Waits for the writes under way and sees to it that they survive a loss of power, if the backend can; see
    /// [`can_flush`](Self::can_flush). A write that is not answered in time is waited for once, and is not among them.
    ///
    /// # Errors
    /// What the backend says; [`Error::TimedOut`]; [`Error::Lost`] as of [`submit_flush`](Self::submit_flush).
    pub fn flush(&mut self) -> Result<(), Error> {
        self.settle_writes()?;
        self.perform(Self::submit_flush)
    }

    /// Discards sectors, as far as whole extents of the medium are among them, and waits until that is done. Writes
    /// under way are waited for before.
    ///
    /// # Errors
    /// As [`submit_discard`](Self::submit_discard); what the backend says; [`Error::TimedOut`].
    pub fn discard_sectors(&mut self, lba: u64, sectors: u64) -> Result<(), Error> {
        self.settle_writes()?;
        self.perform(|disk| disk.submit_discard(lba, sectors))
    }

    /// Has every copy of some sectors erased, and waits until that is done. Writes under way are waited for before.
    ///
    /// # Errors
    /// As [`submit_secure_discard`](Self::submit_secure_discard); what the backend says; [`Error::TimedOut`].
    pub fn erase(&mut self, lba: u64, sectors: u64) -> Result<(), Error> {
        self.settle_writes()?;
        self.perform(|disk| disk.submit_secure_discard(lba, sectors))
    }

    /// Waits until an operation is done, and [takes](Self::take) its result.
    ///
    /// # Errors
    /// The operation's own; [`Error::TimedOut`] when no response comes. That is final: the ticket is of no use any more,
    /// and what was not sent of the operation is not sent.
    pub fn wait(&mut self, ticket: Ticket, out: &mut [u8]) -> Result<(), Error> {
        self.publish()?;
        let mut deadline = self.deadline();
        loop {
            if let Some(result) = self.take(ticket, out) {
                return result;
            }
            if let Err(error) = self.progress(&mut deadline, 0) {
                self.give_up(ticket, error);
                return Err(error);
            }
        }
    }

    /// Waits until everything that was submitted is answered: for each response as long as ever, for all until `whole`.
    pub(crate) fn drain(&mut self, whole: &mut Deadline) -> Result<(), Error> {
        self.publish()?;
        while self.pending() > 0 {
            let end = self.end_of_wait().min(whole.at());
            let mut deadline = Deadline::new(end);
            let waited = self.wait_response(&mut deadline, u32::MAX);
            // The last sleep may have been a pause.
            deadline.until(self.events.platform().now());
            *whole = Deadline::new(whole.at().saturating_add(deadline.at().saturating_sub(end)));
            waited?;
        }
        Ok(())
    }

    /// Waits for what changes the disk: a flush covers what was answered before it was asked for.
    fn settle_writes(&mut self) -> Result<(), Error> {
        self.check_state()?;
        self.publish()?;
        let mut deadline = self.deadline();
        while self.ops.are_changing() {
            if let Err(error) = self.progress(&mut deadline, 0) {
                self.ops.are_late();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Submits one operation without data and waits for it.
    fn perform(&mut self, submit: impl Fn(&mut Self) -> Result<Ticket, Error>) -> Result<(), Error> {
        let mut deadline = self.deadline();
        let ticket = loop {
            match submit(self) {
                // Others' operations have all the places; some come back.
                Err(Error::Busy) if self.pending() > 0 => self.progress(&mut deadline, 0)?,
                other => break other?,
            }
        };
        self.wait(ticket, &mut [])
    }

    fn move_all(&mut self, lba: u64, mut buffer: Buffer<'_>) -> Result<(), Error> {
        self.check_state()?;
        if matches!(buffer, Buffer::Write(_)) && self.features.read_only {
            return Err(Error::ReadOnly);
        }
        if buffer.len() % SECTOR != 0 {
            return Err(Error::Unaligned);
        }
        self.features.check_range(lba, (buffer.len() / SECTOR) as u64)?;
        let mut window = [None; PARTS];
        let result = self.run(lba, &mut buffer, &mut window);
        if let Err(error) = result {
            for (ticket, ..) in window.into_iter().flatten() {
                self.give_up(ticket, error);
            }
        }
        result
    }

    /// Fills the window, empties it, and so on. After a failure nothing new is asked for, but what is under way is
    /// waited for, so that a write that comes later is not overtaken by one of these.
    fn run(&mut self, lba: u64, buffer: &mut Buffer<'_>, window: &mut Window) -> Result<(), Error> {
        let (len, mut next) = (buffer.len(), 0);
        let mut part = self.request_sectors().min(self.max_sectors()) as usize * SECTOR;
        let mut outcome = Ok(());
        let mut deadline = self.deadline();
        loop {
            let mut waiting = 0_u32;
            for entry in window.iter_mut() {
                let Some((ticket, offset, size)) = *entry else { continue };
                let out = match buffer {
                    Buffer::Read(out) => out.get_mut(offset..offset + size).unwrap_or_default(),
                    Buffer::Write(_) => &mut [],
                };
                match self.take(ticket, out) {
                    Some(result) => {
                        *entry = None;
                        outcome = outcome.and(result);
                    }
                    None => waiting += 1,
                }
            }
            while next < len && outcome.is_ok() {
                let Some(place) = window.iter_mut().find(|entry| entry.is_none()) else { break };
                let size = (len - next).min(part);
                let at = lba + (next / SECTOR) as u64;
                let submitted = match buffer {
                    Buffer::Read(_) => self.submit_read(at, (size / SECTOR) as u64),
                    Buffer::Write(data) => {
                        self.submit_write(at, data.get(next..next + size).unwrap_or_default())
                    }
                };
                match submitted {
                    Ok(ticket) => *place = Some((ticket, next, size)),
                    // All places or pages are taken; some come back, of ours or of others.
                    Err(Error::Busy) if waiting > 0 || self.pending() > 0 => break,
                    // Little is enough: some pages are there in any case.
                    Err(Error::Busy | Error::Grant(_)) if part > MAX_SEGMENTS * xen_hypercall::PAGE_SIZE => {
                        part = MAX_SEGMENTS * xen_hypercall::PAGE_SIZE;
                        continue;
                    }
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
                (next, waiting) = (next + size, waiting + 1);
            }
            if waiting == 0 && (next == len || outcome.is_err()) {
                return outcome;
            }
            self.publish()?;
            // While there is more to ask for, room for it is made in halves; at the end only the last response matters.
            let skip = if next == len { waiting - waiting.min(1) } else { waiting / 2 };
            self.progress(&mut deadline, skip)?;
        }
    }

    /// [Waits](Self::wait_response) for responses. Each moves the deadline.
    fn progress(&mut self, deadline: &mut Deadline, skip: u32) -> Result<(), Error> {
        self.wait_response(deadline, skip)?;
        *deadline = Deadline::new(deadline.at().max(self.end_of_wait()));
        Ok(())
    }

    /// Takes responses, waiting for some if there is none: for one more than `skip`.
    fn wait_response(&mut self, deadline: &mut Deadline, skip: u32) -> Result<(), Error> {
        loop {
            let seen = self.events.seq();
            self.look();
            if self.poll()? > 0 {
                return Ok(());
            }
            if self.state == State::Closed {
                return Err(Error::Closed);
            }
            let there = self.arm_after(skip);
            // The clock is looked at in each round, whatever the backend does to the ring.
            let until = deadline.until(self.events.platform().now()).ok_or(Error::TimedOut)?;
            if !there {
                self.events.wait_since(seen, Some(until));
            }
        }
    }

    fn deadline(&self) -> Deadline {
        Deadline::new(self.end_of_wait())
    }

    /// When a backend that does not answer from now on has had its time.
    fn end_of_wait(&self) -> Duration {
        self.events.platform().now().saturating_add(self.config.timeout)
    }
}
