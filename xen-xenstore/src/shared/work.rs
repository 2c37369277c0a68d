//! What the runner does, and who blocks instead of it: messages in and out, and the connection anew.

use xen_evtchn::Progress;
use xen_hypercall::{Platform, Wait};
use xen_ring::XenstoreLayout;

use super::state::{Answer, Phase, QUESTIONS, Stage, State};
use crate::client::{CONNECTED, RECONNECT};
use crate::watches::WATCHES;
use crate::wire::{Operation, Refusal};
use crate::{Error, Question, ServerFeatures, Xenstore};

impl<'x, P: Platform + Wait> State<'x, P> {
    /// Does all that can be done now, and waits for nothing. Returns an error when the connection has ended for good.
    pub(super) fn step(&mut self) -> Result<(), Error> {
        if self.ended.is_some() && self.xs.link.broken.is_none() {
            // It was made anew by who blocked.
            (self.ended, self.phase) = (None, Phase::Up);
        }
        let done = match self.phase {
            Phase::Up => self.work(),
            Phase::Joining => self.join(),
            Phase::Watching(next) => self.watch_again(next),
        };
        match done {
            Ok(()) => Ok(()),
            Err(error) => self.lose(error),
        }
    }

    fn work(&mut self) -> Result<(), Error> {
        self.take_in()?;
        self.xs.link.send_more()?;
        self.tidy_up()?;
        self.xs.link.announce()?;
        self.room.wake();
        Ok(())
    }

    /// Takes in what arrived, up to an answer that has to be taken first.
    fn take_in(&mut self) -> Result<(), Error> {
        if let Some(error) = self.xs.link.broken {
            return Err(error);
        }
        self.xs.link.check_life()?;
        self.xs.link.seen = self.xs.link.events.seq();
        let (mut taken, limit) = (0, self.xs.link.ring.readable()?);
        while self.held.is_none() && taken < limit {
            let (mut refused, held) = (None, &mut self.held);
            let (slots, transactions) = (&mut self.slots, &mut self.transactions);
            let more = self.xs.link.take_piece(&mut taken, &mut |tag, answer| match slots.get_mut(tag) {
                Some(slot) if slot.is_left => {
                    (slot.answer, slot.is_left) = (Answer::None, false);
                    if let Some(place) = transactions.get_mut(slot.tag) {
                        place.began(answer);
                    }
                }
                Some(slot) => {
                    if slot.answered(answer) {
                        *held = Some(tag);
                    }
                }
                None => refused = answer.is_err().then_some((tag - QUESTIONS, answer.err())),
            })?;
            match refused {
                // It was set already, by its owner.
                None | Some((_, Some(Error::Refused(_, Refusal::Exists)))) => {}
                Some((slot, _)) => self.xs.link.watches.refuse(slot),
            }
            if !more {
                break;
            }
        }
        self.xs.link.took(taken)
    }

    /// Ends what tasks that have gone have left at the daemon.
    fn tidy_up(&mut self) -> Result<(), Error> {
        while !self.xs.link.is_cut_off() {
            let places = self.transactions.iter().enumerate();
            let mut orphans = places.filter_map(|(index, place)| match place.state {
                Stage::Orphan(id) => Some((Some(index), id)),
                _ => None,
            });
            if let Some((index, id)) = orphans.next().or(self.xs.link.orphan().map(|id| (None, id))) {
                self.xs.link.send_now(Operation::TRANSACTION_END, id, &[b"F\0"])?;
                match index.and_then(|index| self.transactions.get_mut(index)) {
                    Some(place) => place.state = Stage::Free,
                    None => self.xs.link.change_orphan(id, 0),
                }
            } else if let Some((watch, path)) = self.xs.link.watches.given_up() {
                let question = Question::unwatch(watch, &path);
                self.xs.link.send_now(Operation::UNWATCH, 0, &question.parts(&mut None)?)?;
                self.xs.link.watches.free(watch.slot);
            } else {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The connection is of no use any more. Everybody who asks finds out, and the daemon is asked for a new one.
    fn lose(&mut self, error: Error) -> Result<(), Error> {
        self.xs.link.fail(error);
        self.fail_questions(error);
        match self.ask_for_another() {
            Ok(()) => {
                self.phase = Phase::Joining;
                Ok(())
            }
            Err(()) => {
                self.ended = Some(error);
                self.xs.link.watches.wake_all();
                self.room.wake();
                Err(error)
            }
        }
    }

    /// No question that waits is answered any more.
    pub(super) fn fail_questions(&mut self, error: Error) {
        self.xs.link.give_up();
        self.held = None;
        for slot in &mut self.slots {
            if core::mem::take(&mut slot.is_left) {
                slot.answer = Answer::None;
                if let Some(place) = self.transactions.get_mut(slot.tag) {
                    place.began(Err(error));
                }
            } else if matches!(slot.answer, Answer::Awaited | Answer::Long) {
                slot.answer = Answer::Lost(match error {
                    Error::TimedOut(_) => Error::TimedOut(slot.operation),
                    error => error,
                });
                slot.wake();
            }
        }
    }

    fn ask_for_another(&mut self) -> Result<(), ()> {
        let link = &mut self.xs.link;
        let offers = link.features().is_ok_and(|offered| offered.contains(ServerFeatures::RECONNECTION));
        if !offers || link.check_life().is_err() {
            return Err(());
        }
        link.ring.set_word(XenstoreLayout::CONNECTION, RECONNECT).map_err(drop)?;
        link.channel.notify().map_err(drop)
    }

    fn join(&mut self) -> Result<(), Error> {
        let link = &mut self.xs.link;
        link.check_life()?;
        if link.ring.word(XenstoreLayout::CONNECTION)? != CONNECTED {
            link.channel.done(Progress::Spurious);
            return Ok(());
        }
        link.ring.rejoin()?;
        self.xs.link.reset();
        self.xs.link.stats.reconnects += 1;
        self.forget_transactions();
        self.watch_again(0)
    }

    /// The daemon has forgotten all transactions.
    pub(super) fn forget_transactions(&mut self) {
        for place in &mut self.transactions {
            if matches!(place.state, Stage::Abandoned | Stage::Orphan(_)) {
                place.state = Stage::Free;
            }
        }
    }

    fn watch_again(&mut self, mut next: usize) -> Result<(), Error> {
        self.take_in()?;
        while next < WATCHES && self.xs.link.has_place() && self.xs.link.send_more()? {
            if let Some((watch, path)) = self.xs.link.watches.at(next) {
                let question = Question::watch(watch, &path);
                self.xs.link.send_now(Operation::WATCH, 0, &question.parts(&mut None)?)?;
                self.xs.link.expect(Operation::WATCH, QUESTIONS + next);
            }
            next += 1;
        }
        self.xs.link.send_more()?;
        self.xs.link.announce()?;
        self.phase = Phase::Watching(next);
        if next == WATCHES && self.xs.link.open() == 0 {
            self.phase = Phase::Up;
            return self.work();
        }
        Ok(())
    }

    /// Lends the connection to who blocks.
    pub(super) fn block<R>(&mut self, f: impl FnOnce(&mut Xenstore<'x, P>) -> R) -> R {
        self.settle();
        let life = self.life();
        self.xs.link.is_shared = false;
        let result = f(&mut self.xs);
        self.xs.link.is_shared = true;
        self.xs.link.give_up();
        if self.life() != life {
            self.forget_transactions();
            self.phase = Phase::Up;
        }
        // There may be another channel now, and whatever came was taken in by others.
        self.wake_runner();
        self.room.wake();
        result
    }

    pub(super) fn into_inner(mut self) -> Xenstore<'x, P> {
        self.settle();
        self.xs.link.is_shared = false;
        self.xs.link.give_up();
        self.xs.link.watches.are_owned = false;
        self.xs
    }

    /// Waits until nothing is under way that tasks have asked, in the way of who blocks.
    fn settle(&mut self) {
        let mut deadline = self.xs.deadline();
        loop {
            // Before the look: what comes from here on ends the sleep.
            let seen = self.xs.link.events.seq();
            if self.step().is_err() {
                break;
            }
            if let Some(slot) = self.held.and_then(|index| self.slots.get_mut(index)) {
                // Its task cannot take it now, and others need the room.
                slot.answer = Answer::Lost(Error::TimedOut(slot.operation));
                slot.wake();
                self.held = None;
                continue;
            }
            if self.phase == Phase::Up && !self.is_waiting() {
                break;
            }
            let Some(until) = deadline.until(self.xs.now()) else { break };
            self.xs.link.events.wait_since(seen, Some(until));
        }
        self.fail_questions(Error::TimedOut(Operation::READ));
    }
}
