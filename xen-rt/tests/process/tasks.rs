//! Kernels whose tasks are embassy's.

use embassy_executor::Spawner;
use embassy_time::{Duration, Instant, Ticker, Timer};
use xen_rt::console::task;
use xen_rt::embassy::Executor;
use xen_rt::{Exit, Guest, println};

/// Gives back each line, beside a task that ticks and one that never sleeps.
pub(crate) fn echo(guest: Guest) -> Exit {
    #[embassy_executor::task]
    async fn tick() {
        let mut ticker = Ticker::every(Duration::from_millis(10));
        for _ in 0..3 {
            ticker.next().await;
        }
        println!("ticked");
    }

    #[embassy_executor::task]
    async fn busy() {
        loop {
            embassy_futures::yield_now().await;
        }
    }

    #[embassy_executor::task]
    async fn echo() {
        let (mut line, mut byte) = (String::new(), [0]);
        loop {
            task::read(&mut byte).await.expect("a console");
            if byte != *b"\r" {
                line.push(byte[0].into());
                continue;
            }
            if line == "end" {
                task::flush().await.expect("a console");
                xen_rt::exit(Exit::PowerOff);
            }
            task::write_text(&format!("typed: {line}\n")).await.expect("a console");
            line.clear();
        }
    }

    Executor::new(guest).run(|spawner: Spawner| {
        spawner.spawn(tick().expect("one"));
        spawner.spawn(busy().expect("one"));
        spawner.spawn(echo().expect("one"));
    })
}

/// Tasks on all vCPUs, each of which wakes the next.
#[cfg(feature = "smp")]
pub(crate) fn vcpus(guest: Guest) -> Exit {
    use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
    use embassy_sync::signal::Signal;
    use xen_hypercall::Wait;

    const VCPUS: usize = 4;
    const ROUNDS: u32 = 50;
    static BATONS: [Signal<CriticalSectionRawMutex, u32>; VCPUS] = [const { Signal::new() }; VCPUS];

    /// Waits for its turn, on its own vCPU, and rests for a moment now and then, so that it is asleep when it is woken.
    #[embassy_executor::task(pool_size = 4)]
    async fn run(guest: Guest, me: usize) {
        loop {
            let round = BATONS[me].wait().await;
            assert_eq!(guest.kernel().vcpu().0 as usize, me);
            if round % 7 == me as u32 {
                let before = Instant::now();
                Timer::after_millis(2).await;
                assert!(before.elapsed() >= Duration::from_millis(2));
            }
            if me == 0 {
                println!("round {round}");
                if round == ROUNDS {
                    xen_rt::exit(Exit::PowerOff);
                }
            }
            BATONS[(me + 1) % VCPUS].signal(round + u32::from(me == 0));
        }
    }

    let vcpus = xen_rt::smp::Vcpus::start(guest).expect("vCPUs");
    assert_eq!(vcpus.len() + 1, VCPUS);
    for vcpu in &vcpus {
        let me = vcpu.id().0 as usize;
        let given = vcpu
            .run(move || Executor::new(guest).run(|spawner| spawner.spawn(run(guest, me).expect("a place"))));
        given.expect("it is idle");
    }
    BATONS[0].signal(0);
    Executor::new(guest).run(|spawner| spawner.spawn(run(guest, 0).expect("a place")))
}
