//! Frames that a task sends and receives.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use xen_netfront::Card;

use crate::Turns;
use crate::drivers::{Guest, Machine, measured};

/// A task, and what it is told and tells.
pub struct Task {
    machine: Machine,
    future: Pin<Box<dyn Future<Output = ()>>>,
    /// Bytes that were received; what is received is not sent.
    received: Option<Rc<Cell<usize>>>,
    frame: Vec<u8>,
}

impl Task {
    /// A task that sends so many frames each time that it is polled.
    pub fn copies(depth: usize) -> Self {
        let mut machine = Machine::new();
        let card: &'static Card<'static, Guest> = Box::leak(Box::new(Card::from(machine.card())));
        let future = Box::pin(async move {
            loop {
                for _ in 0..depth {
                    card.transmit(&[0x55; 60]).await.expect("a frame");
                }
                card.publish().expect("the backend keeps to the protocol");
                turn_over().await;
            }
        });
        Self { machine, future, received: None, frame: Vec::new() }
    }

    /// A task that receives frames, and sleeps when there are none.
    pub fn takes() -> Self {
        let mut machine = Machine::new();
        let front = machine.card();
        let mut frame = vec![0x55; 60];
        frame[..6].copy_from_slice(&front.mac().0);
        let card: &'static Card<'static, Guest> = Box::leak(Box::new(Card::from(front)));
        let received = Rc::new(Cell::new(0));
        let count = received.clone();
        let future = Box::pin(async move {
            let mut buf = [0; 1514];
            loop {
                let len = card.receive(&mut buf).await.expect("a frame");
                count.set(count.get() + len);
            }
        });
        Self { machine, future, received: Some(received), frame }
    }
}

/// Is pending once.
async fn turn_over() {
    let mut first = true;
    std::future::poll_fn(|_| {
        if std::mem::take(&mut first) { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
}

#[unsafe(no_mangle)]
#[inline(never)]
fn xen_task(future: Pin<&mut dyn Future<Output = ()>>, cx: &mut Context<'_>) -> bool {
    future.poll(cx).is_pending()
}

impl Turns for Task {
    fn turn(&mut self, depth: usize) {
        if self.received.is_some() {
            for _ in 0..depth {
                self.machine.switch.send(self.frame.clone());
            }
            self.machine.run();
        }
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(measured(|| xen_task(self.future.as_mut(), cx)));
        match &self.received {
            Some(received) => assert_eq!(received.replace(0), 60 * depth),
            None => {
                self.machine.run();
                let arrived = std::iter::from_fn(|| self.machine.switch.receive()).count();
                assert_eq!(arrived, depth);
            }
        }
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}
