//! The executor, on mock machines of their own: each test is a thread, and its time is that of its machine.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration as Time;

use embassy_executor::{Spawner, raw::TaskStorage};
use embassy_futures::select::{Either, select};
use embassy_futures::yield_now;
use embassy_time::{Duration, Instant, Ticker, Timer, with_timeout};
use xen_console::mock::{Faults, MockConsoled};
use xen_console::{Console, SharedConsole};
use xen_evtchn::EventChannels;
use xen_hypercall::mock::{Chance, Dice, MockDomain, MockXen};
use xen_hypercall::{DomId, Wait};
use xen_rt::embassy::Executor;

/// A machine that stays, as tasks need it.
struct Machine {
    xen: MockXen,
    events: &'static EventChannels<MockDomain>,
    daemon: MockConsoled,
    console: &'static SharedConsole<'static, MockDomain>,
    executor: &'static Executor<MockDomain>,
}

impl Machine {
    fn new() -> Self {
        let xen = MockXen::new();
        xen_evtchn::mock::install(&xen);
        let (guest, events) = xen_console::mock::guest(&xen, DomId(1));
        let events: &'static _ = Box::leak(Box::new(events));
        let daemon = MockConsoled::connect(&xen, &guest);
        let console = Box::leak(Box::new(SharedConsole::new(Console::new(events).unwrap())));
        Self { xen, events, daemon, console, executor: Executor::on(events) }
    }
}

/// Starts a future of a test's own as a task.
fn start<F: Future<Output = ()> + 'static>(spawner: Spawner, future: F) {
    let task: &'static TaskStorage<F> = Box::leak(Box::new(TaskStorage::new()));
    spawner.spawn(task.spawn(move || future).unwrap());
}

/// Ticks every 10 ms, and notes how late it was at the most.
async fn tick(late: Rc<Cell<Duration>>, count: Rc<Cell<u32>>) {
    let every = Duration::from_millis(10);
    let mut ticker = Ticker::every(every);
    let mut due = Instant::now() + every;
    loop {
        ticker.next().await;
        late.set(late.get().max(Instant::now() - due));
        count.set(count.get() + 1);
        due += every;
    }
}

#[test]
fn a_task_that_ticks_is_on_time_beside_others() {
    let machine = Machine::new();
    let (late, count) = (Rc::new(Cell::new(Duration::MIN)), Rc::new(Cell::new(0)));
    let console = machine.console;
    let (told, heard) = (late.clone(), count.clone());
    // The console's reader hangs, and whoever writes waits for it.
    machine.daemon.stall_reader(true);
    machine.executor.run_until(
        |spawner| {
            start(spawner, tick(late, count));
            start(spawner, async { console.write_all(&[b'x'; 10_000]).await.unwrap() });
            start(spawner, async { _ = console.read(&mut [0; 10]).await });
            start(spawner, async {
                loop {
                    Timer::after_millis(7).await;
                }
            });
            // Never, and never woken.
            start(spawner, async { Timer::at(Instant::MAX).await });
        },
        || heard.get() == 1000,
    );
    assert_eq!(machine.xen.now(), Time::from_secs(10));
    assert_eq!(told.get(), Duration::MIN);
}

#[test]
fn a_task_sleeps_until_its_event() {
    let machine = Machine::new();
    let done = Rc::new(Cell::new(false));
    let (console, daemon, told) = (machine.console, machine.daemon.clone(), done.clone());
    machine.executor.run_until(
        |spawner| {
            start(spawner, async move {
                let mut bytes = [0; 5];
                let mut count = 0;
                while count < bytes.len() {
                    count += console.read(&mut bytes[count..]).await.unwrap();
                }
                assert_eq!(&bytes, b"hello");
                assert_eq!(Instant::now().as_millis(), 1500);
                console.write_all(b"bye").await.unwrap();
                console.flush().await.unwrap();
                told.set(true);
            });
            start(spawner, async move {
                Timer::after_millis(500).await;
                daemon.type_in(b"hel");
                Timer::after_millis(1000).await;
                daemon.type_in(b"lo");
            });
        },
        || done.get(),
    );
    assert_eq!(machine.daemon.output(), b"bye");
}

#[test]
fn what_waits_too_long_is_dropped() {
    let machine = Machine::new();
    let (console, daemon) = (machine.console, machine.daemon.clone());
    let done = Rc::new(Cell::new(false));
    let told = done.clone();
    machine.executor.run_until(
        |spawner| {
            start(spawner, async move {
                let mut byte = [0];
                let read = with_timeout(Duration::from_secs(3), console.read(&mut byte)).await;
                assert!(read.is_err() && Instant::now().as_secs() == 3);
                // What is typed later is the next one's.
                daemon.type_in(b"x");
                let (read, timer) = (console.read(&mut byte), Timer::after_secs(1));
                assert!(matches!(select(read, timer).await, Either::First(Ok(1))));
                assert_eq!((byte, Instant::now().as_secs()), (*b"x", 3));
                told.set(true);
            });
        },
        || done.get(),
    );
}

#[test]
fn tasks_that_never_sleep_hold_up_no_event_and_no_other() {
    let machine = Machine::new();
    let (console, daemon) = (machine.console, machine.daemon.clone());
    let done = Rc::new(Cell::new(false));
    let told = done.clone();
    daemon.type_in(b"x");
    machine.executor.run_until(
        |spawner| {
            for _ in 0..3 {
                start(spawner, async {
                    loop {
                        yield_now().await;
                    }
                });
            }
            start(spawner, async move {
                let mut byte = [0];
                assert_eq!(console.read(&mut byte).await, Ok(1));
                console.write_all(&[b'y'; 5000]).await.unwrap();
                console.flush().await.unwrap();
                told.set(true);
            });
        },
        || done.get(),
    );
    assert_eq!(machine.daemon.output().len(), 5000);
}

#[test]
fn more_tasks_wait_for_a_time_than_have_a_place_for_it() {
    let machine = Machine::new();
    let done = Rc::new(Cell::new(0));
    let counted = done.clone();
    machine.executor.run_until(
        |spawner| {
            for at in 0..100 {
                let done = counted.clone();
                start(spawner, async move {
                    // Those without a place keep the executor busy, whose machine's time passes by this alone.
                    Timer::after_micros(at * 10).await;
                    done.set(done.get() + 1);
                });
            }
            let xen = machine.xen.clone();
            start(spawner, async move {
                loop {
                    xen.advance(Time::from_micros(1));
                    yield_now().await;
                }
            });
        },
        || done.get() == 100,
    );
}

#[test]
fn an_executor_can_be_run_again_and_not_twice_at_once() {
    let machine = Machine::new();
    let (late, count) = (Rc::new(Cell::new(Duration::MIN)), Rc::new(Cell::new(0)));
    let heard = count.clone();
    assert_eq!(Instant::now().as_ticks(), 0, "no executor runs here");
    machine.executor.run_until(|spawner| start(spawner, tick(late, count)), || heard.get() == 5);
    assert_eq!(machine.events.platform().now(), Time::from_millis(50));
    machine.executor.run_until(|_| assert_eq!(Instant::now().as_millis(), 50), || heard.get() == 10);
    assert_eq!(machine.events.platform().now(), Time::from_millis(100));
    let executor = machine.executor;
    let twice =
        std::panic::AssertUnwindSafe(|| executor.run_until(|_| executor.run_until(|_| {}, || true), || true));
    assert!(std::panic::catch_unwind(twice).is_err());
    // The panic is over, and so is the run.
    executor.run_until(|_| {}, || heard.get() == 15);
}

#[test]
fn without_an_executor_whoever_waits_for_a_time_looks_again_at_once() {
    let mut timer = Box::pin(Timer::after_secs(1));
    let looks = Cell::new(0);
    let polled = embassy_futures::block_on(poll_fn(|cx| {
        looks.set(looks.get() + 1);
        assert!(timer.as_mut().poll(cx).is_pending());
        if looks.get() == 3 { Poll::Ready(true) } else { Poll::Pending }
    }));
    assert!(polled);
}

#[test]
fn machines_side_by_side_have_times_of_their_own() {
    let threads: Vec<_> = (1..=4_u64)
        .map(|speed| {
            std::thread::spawn(move || {
                let machine = Machine::new();
                let done = Rc::new(Cell::new(false));
                let told = done.clone();
                machine.executor.run_until(
                    |spawner| {
                        start(spawner, async move {
                            for round in 1..=1000 {
                                Timer::after_millis(speed).await;
                                assert_eq!(Instant::now().as_millis(), speed * round);
                            }
                            told.set(true);
                        });
                    },
                    || done.get(),
                );
                assert_eq!(machine.xen.now(), Time::from_millis(speed * 1000));
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn no_event_is_slept_over_whatever_the_daemon_does() {
    for seed in 0..50 {
        let machine = Machine::new();
        let mut faults = Faults::new();
        faults.stalls = Chance::percent(30);
        faults.short_read = Chance::percent(50);
        faults.short_write = Chance::percent(50);
        faults.spurious_event = Chance::percent(20);
        machine.daemon.set_faults(Dice::new(seed), faults);
        machine.daemon.type_in(&[b'i'; 5000]);
        let (console, done) = (machine.console, Rc::new(Cell::new(0)));
        let (one, other) = (done.clone(), done.clone());
        let (late, count) = (Rc::new(Cell::new(Duration::MIN)), Rc::new(Cell::new(0)));
        let told = late.clone();
        machine.executor.run_until(
            |spawner| {
                // A daemon that hangs acts when it is looked at again.
                start(spawner, tick(late, count));
                start(spawner, async move {
                    let (mut bytes, mut count) = ([0; 100], 0);
                    while count < 5000 {
                        count += console.read(&mut bytes).await.unwrap();
                    }
                    one.set(one.get() + 1);
                });
                start(spawner, async move {
                    console.write_all(&[b'o'; 20_000]).await.unwrap();
                    console.flush().await.unwrap();
                    other.set(other.get() + 1);
                });
            },
            || {
                assert!(machine.xen.now() < Time::from_secs(100), "a wake-up was lost");
                done.get() == 2
            },
        );
        assert_eq!(told.get(), Duration::MIN);
        assert_eq!(machine.daemon.output().len(), 20_000);
    }
}
