//! Counts instructions under callgrind: per slot, in Rust and in C; per frame and request, here and in `virtio-drivers`.

mod callgrind;

use std::process::ExitCode;
use std::ptr::NonNull;

use ring_bench::{Ends, Page, Turns, drivers, rust, tasks, virtio};

/// Rounds of a run, and slots in each: half a block device's ring, so that the indices wrap.
const ROUNDS: usize = 1000;
const BATCH: usize = 16;

const FUNCTIONS: [&str; 4] = ["push", "back_pop", "back_push", "pop"];
const RINGS: [(&str, &str); 2] = [("net", "12 and 4 bytes"), ("blk", "112 and 16 bytes")];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--work", side, ring] => work(side, ring),
        ["--turns", side, what, depth] => turns(side, what, depth),
        [] => compare()
            .and_then(|good| Ok(compare_drivers()? && good))
            .and_then(|good| Ok(compare_tasks()? && good)),
        _ => Err("usage: ring-bench (without arguments)".into()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ring-bench: {error}");
            ExitCode::from(2)
        }
    }
}

/// Prints the table; returns whether batches need no more instructions than C anywhere.
fn compare() -> Result<bool, String> {
    if !cfg!(ring_h) {
        println!("built without xen/io/ring.h: Rust alone");
    }
    println!("instructions per slot, {ROUNDS} batches of {BATCH}, with publish or arm of the batch");
    println!("{:14}{:>8}{:>16}{:>16}", "", "C", "Rust: one by one", "batch");
    let mut good = true;
    for (ring, size) in RINGS {
        println!("{ring}, slots of {size}");
        for function in FUNCTIONS {
            let count = |side| {
                let total =
                    callgrind::count(&["--work", side, ring], &[&format!("{side}_{ring}_{function}")]);
                total.map(|total| total as f64 / (ROUNDS * BATCH) as f64)
            };
            let [one, batch] = [count("rust")?, count("batch")?];
            if cfg!(ring_h) {
                let c = count("c")?;
                good &= batch <= c;
                let (one_ratio, batch_ratio) = (one / c, batch / c);
                println!("  {function:12}{c:8.2}{one:9.2} ({one_ratio:.2}){batch:9.2} ({batch_ratio:.2})");
            } else {
                println!("  {function:12}{:8}{one:16.2}{batch:16.2}", "-");
            }
        }
    }
    Ok(good)
}

/// What is compared with `virtio-drivers`: its name, what it is, the functions that are counted on each side, and how many
/// are under way at once (a disk of theirs has room for five requests).
struct Subject {
    name: &'static str,
    what: &'static str,
    theirs: &'static [&'static str],
    ours: &'static [&'static str],
    depths: [usize; 2],
}

const SUBJECTS: [Subject; 5] = [
    Subject {
        name: "queue",
        what: "the queue: a buffer added, published, popped",
        theirs: &["virtio_queue_begin", "virtio_queue_end"],
        ours: &["xen_queue_begin", "xen_queue_end"],
        depths: [1, 16],
    },
    Subject {
        name: "send",
        what: "a frame sent in the caller's page",
        theirs: &["virtio_send_begin", "virtio_send_end"],
        ours: &["xen_send"],
        depths: [1, 16],
    },
    Subject {
        name: "copy",
        what: "a frame of 60 bytes sent by a copy",
        theirs: &["virtio_copy_begin", "virtio_copy_end"],
        ours: &["xen_copy"],
        depths: [1, 16],
    },
    Subject {
        name: "receive",
        what: "a frame received in the caller's page",
        theirs: &["virtio_receive"],
        ours: &["xen_receive"],
        depths: [1, 16],
    },
    Subject {
        name: "read",
        what: "4 KiB read into the caller's page",
        theirs: &["virtio_read_begin", "virtio_read_end"],
        ours: &["xen_read_begin", "xen_read_end"],
        depths: [1, 4],
    },
];

/// Prints the second table; returns whether our queue and our drivers need fewer instructions, each and at any depth.
fn compare_drivers() -> Result<bool, String> {
    println!();
    println!(
        "instructions of the guest's driver per operation, from asking to the answer taken, {ROUNDS} rounds;"
    );
    println!("without the far side, notification (a hypercall, or a write to a register) and interrupt");
    println!("{:46}{:>6}{:>16}{:>16}", "", "depth", "virtio-drivers", "xen");
    let mut good = true;
    for Subject { name, what, theirs, ours, depths } in SUBJECTS {
        for depth in depths {
            let count = |side, functions: &[&str]| {
                let total = callgrind::count(&["--turns", side, name, &depth.to_string()], functions);
                total.map(|total| total as f64 / (ROUNDS * depth) as f64)
            };
            let ours = [ours, &["uncounted_hypercall"]].concat();
            let [theirs, ours] = [count("virtio", theirs)?, count("xen", &ours)?];
            good &= ours < theirs;
            println!("{what:46}{depth:6}{theirs:16.1}{ours:9.1} ({:.2})", ours / theirs);
        }
    }
    Ok(good)
}

/// What is compared with itself by a task: what it is, the function that is counted of who polls and of a task.
const TASKS: [(&str, [(&str, &str); 2]); 2] = [
    ("a frame of 60 bytes sent by a copy", [("copy", "xen_copy"), ("task-copy", "xen_task")]),
    ("a frame of 60 bytes received by a copy", [("take", "xen_take"), ("task-take", "xen_task")]),
];

/// A task may need so many times the instructions.
const TASK_LIMIT: f64 = 1.2;

/// Prints the third table; returns whether tasks are within the limit.
fn compare_tasks() -> Result<bool, String> {
    println!();
    println!("the same by a task, with what it takes to sleep, beside who polls and asks for the next event");
    println!("{:46}{:>6}{:>16}{:>16}", "", "depth", "polled", "task");
    let mut good = true;
    for (what, sides) in TASKS {
        for depth in [1, 16] {
            let count = |(name, function): (&str, &str)| {
                let turns = ["--turns", "xen", name, &depth.to_string()];
                let total = callgrind::count(&turns, &[function, "uncounted_hypercall"]);
                total.map(|total| total as f64 / (ROUNDS * depth) as f64)
            };
            let [polled, task] = sides;
            let (polled, task) = (count(polled)?, count(task)?);
            good &= task <= TASK_LIMIT * polled;
            println!("{what:46}{depth:6}{polled:16.1}{task:9.1} ({:.2})", task / polled);
        }
    }
    Ok(good)
}

fn turns(side: &str, what: &str, depth: &str) -> Result<bool, String> {
    let depth: usize = depth.parse().map_err(|_| format!("{depth} is no number"))?;
    let mut subject: Box<dyn Turns> = match (side, what) {
        ("virtio", "queue") => Box::new(virtio::Queue::default()),
        ("virtio", "send") => Box::new(virtio::Send::<virtio::Direct>::new(1514)),
        ("virtio", "copy") => Box::new(virtio::Send::<virtio::Copied>::new(60)),
        ("virtio", "receive") => Box::new(virtio::Receive::new(depth)),
        ("virtio", "read") => Box::new(virtio::Read::new(depth)),
        ("xen", "queue") => Box::new(drivers::Queue::default()),
        ("xen", "send") => Box::new(drivers::Send::new(depth, None)),
        ("xen", "copy") => Box::new(drivers::Send::new(depth, Some(60))),
        ("xen", "receive") => Box::new(drivers::Receive::default()),
        ("xen", "take") => Box::new(drivers::Take::default()),
        ("xen", "task-copy") => Box::new(tasks::Task::copies(depth)),
        ("xen", "task-take") => Box::new(tasks::Task::takes()),
        ("xen", "read") => Box::new(drivers::Read::new(depth)),
        _ => return Err(format!("no {what} on {side}")),
    };
    for _ in 0..ROUNDS {
        subject.turn(depth);
    }
    Ok(true)
}

fn work(side: &str, ring: &str) -> Result<bool, String> {
    let mut page = Box::new(Page([0; 4096]));
    let page = NonNull::from(&mut *page);
    match (side, ring) {
        // SAFETY: the page outlives the rings, which are dropped by `rounds`, and has one user.
        ("rust", "net") => rounds(unsafe { rust::Rings::<rust::Net>::new(page, u32::MAX - 999) }),
        // SAFETY: as above.
        ("rust", "blk") => rounds(unsafe { rust::Rings::<rust::Blk>::new(page, u32::MAX - 999) }),
        // SAFETY: as above.
        ("batch", "net") => rounds(unsafe { rust::Batches::<rust::Net>::new(page, u32::MAX - 999) }),
        // SAFETY: as above.
        ("batch", "blk") => rounds(unsafe { rust::Batches::<rust::Blk>::new(page, u32::MAX - 999) }),
        #[cfg(ring_h)]
        // SAFETY: as above.
        ("c", "net") => rounds(unsafe { ring_bench::c::Net::new(page, u32::MAX - 999, true) }),
        #[cfg(ring_h)]
        // SAFETY: as above.
        ("c", "blk") => rounds(unsafe { ring_bench::c::Blk::new(page, u32::MAX - 999, true) }),
        _ => return Err(format!("no ring {ring} in {side}")),
    }
    Ok(true)
}

fn rounds<Req: Copy + Default + PartialEq, Rsp: Copy + Default>(mut ends: impl Ends<Req, Rsp>) {
    let (mut requests, mut responses) = ([Req::default(); BATCH], [Rsp::default(); BATCH]);
    for _ in 0..ROUNDS {
        let all = BATCH as u32;
        assert_eq!(ends.push(&requests), (all, true));
        assert_eq!(ends.back_pop(&mut requests), (all, false));
        assert_eq!(ends.back_push(&responses), (all, true));
        assert_eq!(ends.pop(&mut responses), (all, false));
    }
}
