//! Questions of one task that are asked together.

use core::future::poll_fn;
use core::task::{Context, Poll};

use xen_hypercall::{Platform, Wait};

use super::SharedStore;
use super::state::{BYTES, Post, Taken};
use crate::link::Sink;
use crate::wire::{Operation, PAYLOAD_MAX};
use crate::{Error, Question};

/// The places of a task's questions. When it is dropped nobody waits for their answers.
pub(super) struct Batch<'s, 'x, P: Platform + Wait> {
    store: &'s SharedStore<'x, P>,
    mine: u16,
}

impl<'s, 'x, P: Platform + Wait> Batch<'s, 'x, P> {
    pub(super) fn new(store: &'s SharedStore<'x, P>) -> Self {
        Self { store, mine: 0 }
    }

    /// Asks all questions and waits for their answers.
    pub(super) async fn ask_all(
        &mut self,
        questions: &mut dyn Iterator<Item = Question<'_>>,
        sink: &mut Sink<'_>,
    ) -> Result<(), Error> {
        for (tag, question) in questions.enumerate() {
            poll_fn(|cx| match question.parts(&mut None) {
                Ok(parts) => {
                    let operation = question.operation;
                    self.poll_post(cx, &Post { operation, transaction: None, parts: &parts, tag }, sink)
                }
                Err(error) => {
                    sink(tag, Err(error));
                    Poll::Ready(Ok(()))
                }
            })
            .await?;
        }
        self.settle(sink).await
    }

    /// Asks one question, and gives `take` its answer.
    pub(super) async fn ask<R>(
        &mut self,
        operation: Operation,
        transaction: Option<(u32, u32)>,
        parts: &[&[u8]],
        take: impl FnOnce(&[u8]) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let (mut take, mut taken) = (Some(take), Err(Error::TimedOut(operation)));
        let sink: &mut Sink<'_> = &mut |_, answer| {
            taken = answer.and_then(|answer| take.take().map_or(Err(Error::BadValue), |take| take(answer)));
        };
        let post = Post { operation, transaction, parts, tag: 0 };
        poll_fn(|cx| self.poll_post(cx, &post, sink)).await?;
        self.settle(sink).await?;
        taken
    }

    /// Asks; `sink` gets the answers to the questions before meanwhile.
    pub(super) fn poll_post(
        &mut self,
        cx: &mut Context<'_>,
        post: &Post<'_>,
        sink: &mut Sink<'_>,
    ) -> Poll<Result<(), Error>> {
        self.collect(sink)?;
        let Self { store, mine } = self;
        store.poll(cx, |state, cx| state.post(mine, post, cx.waker()))
    }

    /// Waits until there is room for a question, which another task may take first.
    pub(super) async fn wait_for_room(&mut self, sink: &mut Sink<'_>) -> Result<(), Error> {
        poll_fn(|cx| {
            self.collect(sink)?;
            let mine = self.mine;
            self.store.poll(cx, |state, cx| {
                state.check()?;
                if state.room().is_some() {
                    return Poll::Ready(Ok(()));
                }
                state.room.register(cx.waker());
                state.await_answers(mine, cx.waker());
                Poll::Pending
            })
        })
        .await
    }

    /// Waits until every question is answered.
    pub(super) async fn settle(&mut self, sink: &mut Sink<'_>) -> Result<(), Error> {
        poll_fn(|cx| {
            self.collect(sink)?;
            let mine = self.mine;
            self.store.poll(cx, |state, cx| {
                if mine == 0 {
                    return Poll::Ready(Ok(()));
                }
                state.await_answers(mine, cx.waker());
                Poll::Pending
            })
        })
        .await
    }

    /// Takes the answers that are there. The store is free while `sink` looks at one.
    fn collect(&mut self, sink: &mut Sink<'_>) -> Result<(), Error> {
        let mut buf = [0; BYTES];
        while self.mine != 0 {
            let taken = self.store.with(|state| state.take(&mut self.mine, &mut buf)).flatten();
            match taken {
                None => break,
                Some((tag, Taken::Bytes(len))) => sink(tag, Ok(buf.get(..len).unwrap_or_default())),
                Some((tag, Taken::Long(index))) => self.collect_long(index, tag, sink),
                Some((tag, Taken::Refused(error))) => sink(tag, Err(error)),
                // One error for all.
                Some((_, Taken::Lost(error))) => return Err(error),
            }
        }
        Ok(())
    }

    /// In a function of its own, for its room.
    #[inline(never)]
    fn collect_long(&mut self, index: usize, tag: usize, sink: &mut Sink<'_>) {
        let mut buf = [0; PAYLOAD_MAX];
        let len = self.store.with(|state| state.take_long(&mut self.mine, index, &mut buf)).unwrap_or(0);
        sink(tag, Ok(buf.get(..len).unwrap_or_default()));
    }
}

impl<P: Platform + Wait> Drop for Batch<'_, '_, P> {
    fn drop(&mut self) {
        if self.mine != 0 {
            self.store.dropped_questions.set(self.store.dropped_questions.get() | self.mine);
        }
        // What was written and not told of is told of now.
        self.store.with(|_| ());
    }
}
