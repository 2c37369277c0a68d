//! What comes from the user of the process: lines to type, and the wish to end.

use std::eprintln;
use std::prelude::rust_2024::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, Result};
use mio::Waker;

/// The status of a process that was ended by Ctrl-C.
pub(super) const INTERRUPTED: i32 = 130;

pub(super) struct Outside {
    lines: Receiver<String>,
    wish: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl Outside {
    /// Begins to listen; `waker` wakes who sleeps when there is something.
    pub(super) fn new(waker: Waker) -> Result<Self> {
        let waker = Arc::new(waker);
        let wish = Arc::new(AtomicBool::new(false));
        let (set, wake, mut asked) = (Arc::clone(&wish), Arc::clone(&waker), false);
        let wakes = Arc::clone(&waker);
        ctrlc::set_handler(move || {
            if core::mem::replace(&mut asked, true) {
                eprintln!("the guest is ended");
                std::process::exit(INTERRUPTED);
            }
            eprintln!("Ctrl-C; another one ends the guest at once");
            set.store(true, Ordering::Relaxed);
            let _ = wake.wake();
        })
        .context("cannot be told of Ctrl-C")?;
        let (sender, lines) = channel();
        std::thread::Builder::new()
            .name("terminal".into())
            .spawn(move || read(&sender, &waker))
            .context("cannot read what is typed")?;
        Ok(Self { lines, wish, waker: wakes })
    }

    /// What wakes who sleeps.
    pub(super) fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// The next line that was typed, as a terminal sends it.
    pub(super) fn line(&self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// Whether the user wants the guest to end, once for each time.
    pub(super) fn asks_to_end(&self) -> bool {
        self.wish.swap(false, Ordering::Relaxed)
    }
}

/// Hands on what is typed, until there is no more.
fn read(sender: &Sender<String>, waker: &Waker) {
    for line in std::io::stdin().lines() {
        let Ok(line) = line else { return };
        if sender.send(line + "\r").is_err() || waker.wake().is_err() {
            return;
        }
    }
}
