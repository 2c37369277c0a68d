//! Calls that wait: whole transfers of any length, as many requests at once as there can be.

use core::time::Duration;

use xen_hypercall::{Platform, Wait};

use crate::abi::{OP_WRITE, RING_SLOTS, SECTOR};
use crate::{BlkFront, Error, State, Ticket};

/// The requests of one transfer that are under way, each with the part of the buffer that it is for.
struct Window {
    entries: [Option<(Ticket, usize, usize)>; RING_SLOTS],
}

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
    /// As [`submit_read`](Self::submit_read); what the backend answers; [`Error::TimedOut`]. What is in `out` is
    /// undetermined then.
    pub fn read(&mut self, lba: u64, out: &mut [u8]) -> Result<(), Error> {
        self.transfer(lba, Buffer::Read(out))
    }

    /// Writes sectors.
    ///
    /// # Errors
    /// As [`submit_write`](Self::submit_write); what the backend answers; [`Error::TimedOut`]. Any of the sectors
    /// may have been written then, and after a timeout may still be.
    pub fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), Error> {
        self.transfer(lba, Buffer::Write(data))
    }

    /// Waits for the writes under way and sees to it that they survive a loss of power, if the backend can; see
    /// [`can_flush`](Self::can_flush).
    ///
    /// # Errors
    /// What the backend answers, or [`Error::TimedOut`].
    pub fn flush(&mut self) -> Result<(), Error> {
        self.check_state()?;
        self.publish()?;
        let mut deadline = self.deadline();
        // A flush covers what was answered before it was asked for.
        while self.slots.any_in_flight(OP_WRITE) {
            self.progress(&mut deadline)?;
        }
        let ticket = loop {
            match self.submit_flush() {
                Err(Error::Busy) if self.ring.in_flight() > 0 => self.progress(&mut deadline)?,
                other => break other?,
            }
        };
        self.publish()?;
        loop {
            if let Some(result) = self.take(ticket, &mut []) {
                return result;
            }
            if let Err(error) = self.progress(&mut deadline) {
                self.forget(ticket);
                return Err(error);
            }
        }
    }

    /// Waits until everything that was submitted is answered.
    pub(crate) fn drain(&mut self, until: Duration) -> Result<(), Error> {
        self.publish()?;
        while self.ring.in_flight() > 0 {
            let mut deadline = self.deadline().min(until);
            self.progress(&mut deadline)?;
        }
        Ok(())
    }

    fn transfer(&mut self, lba: u64, mut buffer: Buffer<'_>) -> Result<(), Error> {
        self.check_state()?;
        if matches!(buffer, Buffer::Write(_)) && self.geometry.read_only {
            return Err(Error::ReadOnly);
        }
        if buffer.len() % SECTOR != 0 {
            return Err(Error::Unaligned);
        }
        self.geometry.check_range(lba, (buffer.len() / SECTOR) as u64)?;
        let mut window = Window { entries: [None; RING_SLOTS] };
        let result = self.run(lba, &mut buffer, &mut window);
        for (ticket, ..) in window.entries.into_iter().flatten() {
            self.forget(ticket);
        }
        result
    }

    /// Fills the window, empties it, and so on. After a failure nothing new is asked for, but what is under way is
    /// waited for, so that a write that comes later is not overtaken by one of these.
    fn run(&mut self, lba: u64, buffer: &mut Buffer<'_>, window: &mut Window) -> Result<(), Error> {
        // What others submitted gives its places back only once the backend has seen it.
        self.publish()?;
        let (len, mut next, mut taken) = (buffer.len(), 0, 0);
        let mut outcome = Ok(());
        let mut deadline = self.deadline();
        loop {
            while next < len && outcome.is_ok() {
                let Some(place) = window.entries.iter_mut().find(|entry| entry.is_none()) else { break };
                let size = (len - next).min(self.max_sectors() as usize * SECTOR);
                let at = lba + (next / SECTOR) as u64;
                let submitted = match buffer {
                    Buffer::Read(_) => self.submit_read(at, (size / SECTOR) as u64),
                    Buffer::Write(data) => {
                        self.submit_write(at, data.get(next..next + size).unwrap_or_default())
                    }
                };
                match submitted {
                    Ok(ticket) => *place = Some((ticket, next, size)),
                    // All places are taken; some come back, of ours or of others.
                    Err(Error::Busy) if next > taken || self.ring.in_flight() > 0 => break,
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
                next += size;
            }
            self.publish()?;
            for entry in &mut window.entries {
                let Some((ticket, offset, size)) = *entry else { continue };
                let out = match buffer {
                    Buffer::Read(out) => out.get_mut(offset..offset + size).unwrap_or_default(),
                    Buffer::Write(_) => &mut [],
                };
                if let Some(result) = self.take(ticket, out) {
                    *entry = None;
                    taken += size;
                    outcome = outcome.and(result);
                }
            }
            let waiting = window.entries.iter().any(Option::is_some);
            if !waiting && (next == len || outcome.is_err()) {
                return outcome;
            }
            if self.slots.free() == 0 || waiting {
                self.progress(&mut deadline)?;
            }
        }
    }

    /// Takes responses, waiting for the first if there is none. Each moves the deadline.
    fn progress(&mut self, deadline: &mut Duration) -> Result<(), Error> {
        loop {
            if self.poll()? > 0 {
                *deadline = (*deadline).max(self.deadline());
                return Ok(());
            }
            if self.state == State::Gone {
                return Err(Error::Closing);
            }
            if self.arm() {
                continue;
            }
            if self.events.platform().now() >= *deadline {
                return Err(Error::TimedOut);
            }
            self.events.wait(Some(*deadline));
        }
    }

    fn deadline(&self) -> Duration {
        self.events.platform().now().saturating_add(self.config.timeout)
    }
}
