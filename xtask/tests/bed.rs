//! The test bed itself. It boots QEMU and takes half a minute, so it runs only when asked for:
//! `cargo test -p xtask --test bed -- --ignored`.

use std::time::{Duration, Instant};
use xtask::dom0::{Dom0, Options};

const SHORT: Duration = Duration::from_secs(20);

#[test]
#[ignore = "boots QEMU"]
fn one_boot_runs_scripts_moves_files_and_follows_them() {
    let dom0 = Dom0::boot(&Options::default()).expect("dom0 boots");

    let output = dom0.sh("echo out; echo err >&2; exit 7", SHORT).expect("a script runs");
    assert_eq!((output.status, output.stdout.as_str()), (7, "out\nerr\n"));
    assert!(dom0.run("xl list", SHORT).expect("xl works").contains("Domain-0"));
    assert!(dom0.run("exit 1", SHORT).is_err());

    // Neither a late script nor what it left running may block the next one.
    let start = Instant::now();
    let late = dom0.sh("echo begun; sleep 100 & sleep 100", Duration::from_secs(2)).expect_err("it is late");
    assert!(late.to_string().contains("begun") && start.elapsed() < Duration::from_secs(15), "{late}");
    dom0.run("sleep 100 & echo $! >/tmp/background", SHORT).expect("a background process holds up nothing");
    dom0.run("kill $(cat /tmp/background)", SHORT).expect("and it lives on");

    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    dom0.put("/tmp/a new folder/file", &bytes).expect("a file arrives");
    assert_eq!(dom0.get("/tmp/a new folder/file").expect("a file comes back"), bytes);
    assert!(dom0.get("/no/such/file").expect_err("missing").to_string().contains("/no/such/file"));

    let mut log = dom0.follow("/tmp/log").expect("a file can be followed before it exists");
    dom0.run("(sleep 1; echo one; sleep 1; echo two) >/tmp/log 2>&1 &", SHORT).expect("the writer starts");
    assert!(log.wait_for("two", SHORT).expect("the log grows").starts_with("one\n"));
    assert!(log.wait_for("three", Duration::from_secs(1)).is_err());
    drop(log);
    dom0.run("for i in $(seq 50); do pidof tail || exit 0; sleep 0.1; done; exit 1", SHORT)
        .expect("tail has ended");
}
