//! What is counted, and the task that shows whether anything holds up the executor.

use core::cell::Cell;
use core::fmt::Write;

use embassy_time::{Duration, Instant, Ticker};
use xen_hypercall::{Platform, Wait};

use crate::Domain;

/// What passed so far.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) ticks: Cell<u64>,
    /// By how much a tick was late at the most.
    pub(crate) latest: Cell<Duration>,
    pub(crate) answers: Cell<u64>,
    /// Bytes that were read of the disk.
    pub(crate) read: Cell<u64>,
    /// How often each device came.
    pub(crate) cards: Cell<u64>,
    pub(crate) disks: Cell<u64>,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            ticks: Cell::default(),
            latest: Cell::new(Duration::MIN),
            answers: Cell::default(),
            read: Cell::default(),
            cards: Cell::default(),
            disks: Cell::default(),
        }
    }
}

pub(crate) fn count(figure: &Cell<u64>, by: u64) {
    figure.set(figure.get() + by);
}

/// Ticks every 10 ms. One that is late does not put the next one off.
pub(crate) async fn tick(figures: &Figures) {
    const EVERY: Duration = Duration::from_millis(10);
    let (mut ticker, mut due) = (Ticker::every(EVERY), Instant::now() + EVERY);
    loop {
        ticker.next().await;
        let late = Instant::now().saturating_duration_since(due);
        figures.latest.set(figures.latest.get().max(late));
        count(&figures.ticks, 1);
        due += EVERY;
    }
}

/// All figures, one a line.
pub(crate) fn write<P: Platform + Wait>(domain: &Domain<P>, to: &mut impl Write) -> core::fmt::Result {
    let figures = &domain.figures;
    let disk = domain.disk.with(|disk| disk.stats().requests).unwrap_or_default();
    writeln!(to, "ticks {}", figures.ticks.get())?;
    writeln!(to, "latest_tick_micros {}", figures.latest.get().as_micros())?;
    writeln!(to, "answers {}", figures.answers.get())?;
    writeln!(to, "disk_read_bytes {}", figures.read.get())?;
    writeln!(to, "disk_requests {disk}")?;
    writeln!(to, "cards {}", figures.cards.get())?;
    writeln!(to, "disks {}", figures.disks.get())?;
    writeln!(to, "frames_received {}", domain.card.stats().rx_frames)?;
    writeln!(to, "events {}", domain.events.stats().events)
}
