//! The kernel as a process: what its arguments make of it, how it ends, and what comes of the user's wishes.
//!
//! This program is a kernel itself. Started without words for it, by cargo, it starts itself with each of those that [`guest`]
//! knows, and looks at what comes of it.
#![no_main]

mod guest;
#[cfg(feature = "embassy")]
mod tasks;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use xen_rt::{Exit, Guest};

xen_rt::entry!(main);

fn main(guest: Guest) -> Exit {
    match guest.command_line().strip_prefix("as=") {
        Some(role) => guest::play(guest, role),
        None => check(),
    }
}

/// No answer takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

type Check = (&'static str, fn());

const CHECKS: &[Check] = &[
    ("statuses", each_end_has_its_status),
    ("refusals", what_cannot_be_is_told_with_the_way_out),
    ("terminal", what_is_typed_arrives),
    ("store", the_store_has_what_the_arguments_say),
    ("disks", disks_are_files),
    ("memory", memory_is_what_was_asked_for),
    ("request", ctrl_c_asks_a_guest_that_watches),
    ("no-request", ctrl_c_ends_a_guest_that_does_not),
    ("twice", a_second_ctrl_c_ends_a_guest_that_hangs),
    ("ports", ports_lead_to_the_guest_both_ways),
    ("late", what_a_guest_says_last_arrives),
    #[cfg(feature = "embassy")]
    ("tasks", tasks_sleep_and_are_woken),
    #[cfg(all(feature = "embassy", feature = "smp"))]
    ("tasks-vcpus", tasks_of_several_vcpus_wake_each_other),
    #[cfg(feature = "smp")]
    ("vcpus", vcpus_are_threads_which_wait_for_each_other),
    #[cfg(feature = "smp")]
    ("vcpus-end", any_vcpu_ends_the_process),
];

/// A check that fails panics, which ends this process as a crash.
fn check() -> Exit {
    for (name, check) in CHECKS {
        println!("test {name} ...");
        check();
    }
    println!("\ntest result: ok. {} passed; 0 failed", CHECKS.len());
    Exit::PowerOff
}

/// This program as a guest.
fn guest(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(args: &[&str]) -> Output {
    guest(args).output().expect("the guest runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A guest that runs, whose output is read line by line. It ends when this is dropped.
struct Running {
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

/// Bytes of a pipe that are read as far as needed.
struct Lines(Box<dyn Read>);

impl Iterator for Lines {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let (mut line, mut byte) = (Vec::new(), [0]);
        while self.0.read(&mut byte).is_ok_and(|count| count == 1) && byte != *b"\n" {
            line.push(byte[0]);
        }
        (byte == *b"\n" || !line.is_empty()).then(|| text(&line))
    }
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut child = guest(args).stdin(Stdio::piped()).spawn().expect("the guest runs");
        let stdout = Lines(Box::new(child.stdout.take().expect("a pipe")));
        let stderr = Lines(Box::new(child.stderr.take().expect("a pipe")));
        Self { child, stdout, stderr }
    }

    fn wait_for(&mut self, line: &str) {
        let found = self.stdout.find(|read| read == line);
        assert!(found.is_some(), "the guest ended without the line {line:?}");
    }

    fn type_in(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).expect("the guest reads");
    }

    fn interrupt(&self) {
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(sent.expect("kill is there").success());
    }

    /// Its status, and what it said last.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().expect("it is ours").code();
        (status, self.stderr.by_ref().collect::<Vec<_>>().join("\n"))
    }

    /// The port of this machine that leads to a port of the guest.
    fn port(&mut self, guest: u16) -> u16 {
        let line = self.stderr.find(|line| line.contains(&format!("leads to port {guest} of the guest")));
        let line = line.expect("a line for the port");
        let port = line.strip_prefix("127.0.0.1:").and_then(|rest| rest.split(' ').next());
        port.and_then(|port| port.parse().ok()).expect("a number")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file that goes when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, contents: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("xen-rt-{}-{name}", std::process::id()));
        fs::write(&path, contents).expect("a file");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a name of letters")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn each_end_has_its_status() {
    for (role, status, said) in [
        ("as=off", 0, "the guest has powered off"),
        ("as=call", 0, "the guest has powered off"),
        ("as=reboot", 3, "the guest wants to be started again"),
        ("as=crash", 101, "the guest has crashed"),
        ("as=panic", 101, "on purpose"),
        ("as=watchdog", 101, "the guest was ended by its watchdog"),
    ] {
        let ended = output(&[role]);
        assert_eq!(ended.status.code(), Some(status), "{role}: {}", text(&ended.stderr));
        assert!(text(&ended.stderr).contains(said), "{role}: {}", text(&ended.stderr));
        // What was written before is not lost.
        assert!(text(&ended.stdout).starts_with(&format!("begins {role}\n")), "{}", text(&ended.stdout));
    }
    // A panic in the middle of the mock, with its locks held, ends all the same.
    let lost = output(&["as=lost"]);
    assert_eq!(lost.status.code(), Some(101), "{}", text(&lost.stderr));
    assert!(text(&lost.stderr).contains("is not memory of this domain"), "{}", text(&lost.stderr));
    let crash = output(&["as=crash"]);
    let all = text(&crash.stdout) + &text(&crash.stderr);
    assert_eq!(all.matches("because it was told so").count(), 1, "told once: {all}");
}

#[cfg(feature = "embassy")]
fn tasks_sleep_and_are_woken() {
    let mut guest = Running::start(&["as=tasks"]);
    guest.wait_for("ticked");
    for word in ["one", "two"] {
        guest.type_in(&format!("{word}\n"));
        guest.wait_for(&format!("typed: {word}"));
    }
    guest.type_in("end\n");
    let (status, said) = guest.end();
    assert_eq!(status, Some(0), "{said}");
}

#[cfg(all(feature = "embassy", feature = "smp"))]
fn tasks_of_several_vcpus_wake_each_other() {
    let ended = output(&["--vcpus", "4", "as=tasks-vcpus"]);
    assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
    let wanted = (0..=50).map(|round| format!("round {round}\n"));
    assert_eq!(
        text(&ended.stdout),
        wanted.fold(String::from("begins as=tasks-vcpus\n"), |all, line| all + &line)
    );
}

#[cfg(feature = "smp")]
fn vcpus_are_threads_which_wait_for_each_other() {
    let ended = output(&["--vcpus", "4", "as=vcpus"]);
    assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
    let wanted = (0..50).flat_map(|round| (1..4).map(move |vcpu| format!("round {round} vCPU {vcpu}\n")));
    assert_eq!(text(&ended.stdout), wanted.fold(String::from("begins as=vcpus\n"), |all, line| all + &line));
}

#[cfg(feature = "smp")]
fn any_vcpu_ends_the_process() {
    for (role, status, said) in
        [("as=vcpu-reboot", 3, "the guest wants to be started again"), ("as=vcpu-panic", 101, "on purpose")]
    {
        let ended = output(&["--vcpus", "2", role]);
        assert_eq!(ended.status.code(), Some(status), "{role}: {}", text(&ended.stderr));
        assert!(text(&ended.stderr).contains(said), "{role}: {}", text(&ended.stderr));
        // What was written before is not lost.
        assert_eq!(text(&ended.stdout), format!("begins {role}\nanother vCPU\n"));
    }
}

fn what_cannot_be_is_told_with_the_way_out() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its number").port();
    let small = Scratch::new("small", &[0; 511]);
    let folder = std::env::temp_dir();
    let long = "x".repeat(1024);
    for (args, status, said) in [
        (
            &["--forward", &format!("{port}:80")][..],
            1,
            &*format!("port {port} is in use; choose another by --forward"),
        ),
        (&["--disk", "/nowhere/disk.img"], 1, "cannot use /nowhere/disk.img as a disk: No such file"),
        (&["--disk", folder.to_str().expect("letters")], 1, "as a disk: Is a directory"),
        (&["--disk", small.path()], 1, "it has 511 bytes, which is less than a sector"),
        (&[&long], 1, "the command line has 1024 bytes, and Xen gives a kernel 1023"),
        (&["--forward", "80"], 2, "two ports are wanted, such as 8080:80"),
    ] {
        let refused = output(args);
        assert_eq!(refused.status.code(), Some(status), "{args:?}");
        assert!(text(&refused.stderr).contains(said), "{args:?}: {}", text(&refused.stderr));
    }
}

fn what_is_typed_arrives() {
    let mut guest = Running::start(&["as=echo"]);
    guest.type_in("one\n");
    guest.wait_for("typed: one");
    guest.type_in("two\nend\n");
    guest.wait_for("typed: two");
    assert_eq!(guest.end().0, Some(0));
}

fn the_store_has_what_the_arguments_say() {
    let said = text(&output(&["as=store"]).stdout);
    assert!(said.contains("name xen-rt, card at 10.0.0.2\n"), "{said}");
    let said = text(&output(&["--name", "other", "--address", "10.1.2.3", "as=store"]).stdout);
    assert!(said.contains("name other, card at 10.1.2.3\n"), "{said}");
    let said = text(&output(&["--no-vif", "as=store"]).stdout);
    assert!(said.contains("name xen-rt, no card\n"), "{said}");
}

fn disks_are_files() {
    let (first, second) = (Scratch::new("first", &[7; 4096]), Scratch::new("second", &[9; 8192]));
    let ended = output(&["--disk", first.path(), "--disk", second.path(), "as=disks"]);
    let said = text(&ended.stdout);
    assert!(said.contains("disk 51712: 8 sectors of 7\ndisk 51728: 16 sectors of 9\n"), "{said}");
    for scratch in [&first, &second] {
        let bytes = fs::read(&scratch.0).expect("the disk");
        assert_eq!(&bytes[512..1024], &[0x5A; 512], "what the guest wrote");
        assert_eq!(bytes[0], bytes[1024], "and no more");
    }
}

fn memory_is_what_was_asked_for() {
    for (memory, least, most) in [("1", 200, 256), ("8", 2000, 2048)] {
        let said = text(&output(&["--memory", memory, "as=memory"]).stdout);
        let pages = said.lines().find_map(|line| line.strip_prefix("pages: ")?.parse::<usize>().ok());
        let pages = pages.unwrap_or_else(|| panic!("no number in {said}"));
        assert!((least..=most).contains(&pages), "{pages} pages of {memory} MiB");
    }
}

fn ctrl_c_asks_a_guest_that_watches() {
    let mut guest = Running::start(&["as=obey"]);
    guest.wait_for("watching");
    guest.interrupt();
    guest.wait_for("asked for PowerOff");
    let (status, said) = guest.end();
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("the guest is asked to power off"), "{said}");
}

fn ctrl_c_ends_a_guest_that_does_not() {
    let mut guest = Running::start(&["as=wait"]);
    guest.wait_for("waiting");
    guest.interrupt();
    let (status, said) = guest.end();
    assert_eq!(status, Some(130), "{said}");
    assert!(said.contains("does not watch for requests"), "{said}");
}

fn a_second_ctrl_c_ends_a_guest_that_hangs() {
    let mut guest = Running::start(&["as=busy"]);
    guest.wait_for("busy");
    guest.interrupt();
    // Two signals that wait at the same time are one.
    assert_eq!(guest.stderr.next().as_deref(), Some("Ctrl-C; another one ends the guest at once"));
    guest.interrupt();
    assert_eq!(guest.end().0, Some(130));
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    stream
}

fn ports_lead_to_the_guest_both_ways() {
    let pcap = Scratch::new("pcap", b"");
    let mut guest =
        Running::start(&["--forward", "0:7", "--forward", "0:8", "--pcap", pcap.path(), "as=serve"]);
    let ports = [guest.port(7), guest.port(8)];
    guest.wait_for("serving");
    let sent: Vec<u8> = (0..1_000_000_u32).map(|number| ((number * 31) >> 7) as u8).collect();
    let clients = ports.map(|port| {
        let sent = sent.clone();
        std::thread::spawn(move || {
            let mut stream = connect(port);
            let mut writer = stream.try_clone().expect("a second handle");
            let writes = std::thread::spawn(move || {
                writer
                    .write_all(&sent)
                    .and_then(|()| writer.shutdown(Shutdown::Write))
                    .expect("all is taken");
            });
            let mut received = Vec::new();
            stream.read_to_end(&mut received).expect("all comes back");
            writes.join().expect("written");
            received
        })
    });
    for client in clients {
        let received = client.join().expect("a client");
        assert!(received.iter().copied().eq(sent.iter().map(|byte| !*byte)), "another answer");
    }
    guest.type_in("end\n");
    assert_eq!(guest.end().0, Some(0));
    let file = fs::read(Path::new(pcap.path())).expect("the capture");
    assert!(file.len() > 4_000_000, "{} bytes of frames", file.len());
}

/// A guest that has given its answer to the card may end: the other side has it.
fn what_a_guest_says_last_arrives() {
    let mut guest = Running::start(&["--forward", "0:9", "as=once"]);
    let port = guest.port(9);
    guest.wait_for("serving");
    let (mut stream, mut answer) = (connect(port), String::new());
    stream.write_all(b"?").expect("it is open");
    let _ = stream.read_to_string(&mut answer);
    assert_eq!(answer, "goodbye");
    assert_eq!(guest.end().0, Some(0));
}
