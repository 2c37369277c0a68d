//! A Linux dom0 on real Xen, which runs scripts and exchanges files with this process.
//!
//! One boot serves many tests: a small server in dom0 answers each TCP connection to its control port. What it
//! understands is written in `serve.sh`.

use crate::deb;
use crate::initramfs;
use crate::platform::Arch;
use crate::qemu::{self, Forward, Machine, Qemu, System};
use anyhow::{Context, Result, bail};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// dom0's address on the bridge.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The address that a guest must take to be reached through [`Dom0::http_port`].
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// This machine's address, as dom0 and its guests see it.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);

/// Where dom0 listens for this process.
const CONTROL: u16 = 10;
/// A file that is followed and does not grow for so long is opened again.
const QUIET: Duration = Duration::from_secs(5);
/// How much longer than the script the answer may take.
const GRACE: Duration = Duration::from_secs(30);

/// An implementation of xenstore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Store {
    /// The one in C.
    #[default]
    Xenstored,
    /// The one in OCaml.
    Oxenstored,
}

impl Store {
    fn name(self) -> &'static str {
        match self {
            Store::Xenstored => "xenstored",
            Store::Oxenstored => "oxenstored",
        }
    }
}

/// How dom0 is booted.
#[derive(Debug, Clone)]
pub struct Options {
    /// The architecture.
    pub arch: Arch,
    /// The xenstore that runs in dom0.
    pub store: Store,
    /// Memory of the whole machine, in MiB, if the architecture's own choice does not do. Guests get what dom0 and Xen leave.
    pub memory: Option<u32>,
    /// Memory of dom0, in MiB.
    pub dom0_memory: Option<u32>,
    /// A raw disk image that dom0 sees as `/dev/vda`.
    pub disk: Option<PathBuf>,
    /// The port here that leads to port 80 of the guest at [`GUEST`]. A free one where it is `None`.
    pub http_port: Option<u16>,
    /// More ports that lead inside.
    pub forwards: Vec<Forward>,
    /// How long the boot may take.
    pub timeout: Duration,
    /// Whether the serial line is copied to standard error.
    pub echo: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            arch: Arch::default(),
            store: Store::default(),
            memory: None,
            dom0_memory: None,
            disk: None,
            http_port: None,
            forwards: Vec::new(),
            timeout: Duration::from_secs(300),
            echo: false,
        }
    }
}

/// What a script left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status: 0 for success.
    pub status: i32,
    /// What it printed, standard error included.
    pub stdout: String,
}

/// A running dom0. Dropping it ends QEMU, and nothing of it is left.
#[derive(Debug)]
pub struct Dom0 {
    qemu: Qemu,
    control: u16,
    http: u16,
}

impl Dom0 {
    /// Boots Xen and dom0, and fetches and builds what that needs the first time.
    pub fn boot(options: &Options) -> Result<Dom0> {
        let (lock, bed) = deb::ensure(options.arch.platform())?;
        let initramfs = initramfs::ensure(&lock, &bed)?;
        let mut tries = 0;
        loop {
            let (control, http) = (qemu::free_port()?, options.http_port.map_or_else(qemu::free_port, Ok)?);
            let mut forwards = vec![
                Forward { host: control, address: ADDRESS, port: CONTROL },
                Forward { host: http, address: GUEST, port: 80 },
            ];
            forwards.extend(&options.forwards);
            let machine = Machine {
                memory: options.memory,
                dom0_memory: options.dom0_memory,
                system: System::Linux {
                    initramfs: initramfs.clone(),
                    options: format!("bed.store={}", options.store.name()),
                },
                disk: options.disk.clone(),
                forwards,
                echo: options.echo,
            };
            let qemu = Qemu::start(&bed, &machine)?;
            match qemu.wait_for(&["bed: ready", "bed: failed"], options.timeout) {
                Ok(0) => return Ok(Dom0 { qemu, control, http }),
                Ok(_) => bail!("dom0 did not start:\n{}", qemu::last_lines(&qemu.serial())),
                // Somebody else took one of the free ports first.
                Err(_) if tries < 3 && qemu.serial().contains("Could not set up host forwarding") => {
                    tries += 1
                }
                Err(error) => return Err(error.context("dom0 did not start")),
            }
        }
    }

    /// The port here that leads to port 80 of the guest at [`GUEST`].
    pub fn http_port(&self) -> u16 {
        self.http
    }

    /// All that Xen and dom0 printed on the serial line.
    pub fn serial(&self) -> String {
        self.qemu.serial()
    }

    /// Runs a bash script in dom0. A script that takes longer than `timeout` is killed, and that is an error.
    pub fn sh(&self, script: &str, timeout: Duration) -> Result<Output> {
        let seconds = timeout.as_secs_f64();
        let request = format!("sh {seconds:.3} {}", script.len());
        let (status, bytes) = self.ask(&request, script.as_bytes(), timeout)?;
        let stdout = String::from_utf8_lossy(&bytes).into_owned();
        match status.parse() {
            Ok(status) => Ok(Output { status, stdout }),
            Err(_) => bail!("dom0's script was not done after {seconds} s: {}", shown(script, &stdout)),
        }
    }

    /// Runs a script that has to succeed, and returns what it printed.
    pub fn run(&self, script: &str, timeout: Duration) -> Result<String> {
        let output = self.sh(script, timeout)?;
        if output.status != 0 {
            bail!("dom0's script failed with status {}: {}", output.status, shown(script, &output.stdout));
        }
        Ok(output.stdout)
    }

    /// Writes a file in dom0, and makes the folders that lead to it.
    pub fn put(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.file(&format!("put {} {}", bytes.len(), one_line(path)?), bytes)
            .map(drop)
            .with_context(|| format!("cannot write {path} in dom0"))
    }

    /// Reads a file of dom0.
    pub fn get(&self, path: &str) -> Result<Vec<u8>> {
        self.file(&format!("get {}", one_line(path)?), &[])
            .with_context(|| format!("cannot read {path} in dom0"))
    }

    fn file(&self, request: &str, bytes: &[u8]) -> Result<Vec<u8>> {
        let (status, answer) = self.ask(request, bytes, Duration::from_secs(300))?;
        if status != "0" {
            bail!("{}", String::from_utf8_lossy(&answer).trim());
        }
        Ok(answer)
    }

    /// Reads a file of dom0 from its start, and then what is added to it, also if the file does not exist yet.
    pub fn follow(&self, path: &str) -> Result<Follow> {
        let control = self.control;
        let stream = follow(control, one_line(path)?)?;
        Ok(Follow { control, stream, path: path.to_owned(), text: Vec::new(), ended: false })
    }

    /// Follows the console of the guest `name`, as xenconsoled writes it down.
    pub fn console(&self, name: &str) -> Result<Follow> {
        self.follow(&format!("/var/log/xen/guest-{name}.log"))
    }

    fn connect(&self, request: &str) -> Result<TcpStream> {
        let mut stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.control)).with_context(|| self.lost())?;
        stream.set_nodelay(true)?;
        stream
            .write_all(request.as_bytes())
            .and_then(|()| stream.write_all(b"\n"))
            .with_context(|| self.lost())?;
        Ok(stream)
    }

    /// Sends a request, and returns the answer's status and bytes.
    fn ask(&self, request: &str, bytes: &[u8], timeout: Duration) -> Result<(String, Vec<u8>)> {
        let mut stream = self.connect(request)?;
        stream.set_read_timeout(Some(timeout + GRACE))?;
        stream.write_all(bytes).with_context(|| self.lost())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).with_context(|| self.lost())?;
        let (line, rest) = match answer.iter().position(|&byte| byte == b'\n') {
            Some(end) => (answer.get(..end).unwrap_or_default(), answer.get(end + 1..).unwrap_or_default()),
            None => bail!(self.lost()),
        };
        let line = String::from_utf8_lossy(line).into_owned();
        match line.split_once(' ') {
            Some((status, length)) if length.parse() == Ok(rest.len()) => {
                Ok((status.to_owned(), rest.to_vec()))
            }
            _ => bail!("dom0's answer is cut short: {line}, then {} bytes", rest.len()),
        }
    }

    fn lost(&self) -> String {
        let serial = self.serial();
        let what = if self.qemu.ended() { "QEMU has ended" } else { "dom0 does not answer" };
        format!("{what}. The serial line's last lines:\n{}", qemu::last_lines(&serial))
    }
}

fn follow(control: u16, path: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, control))?;
    stream.write_all(format!("follow {path}\n").as_bytes())?;
    Ok(stream)
}

/// A script and what it printed, short enough for an error message.
fn shown(script: &str, stdout: &str) -> String {
    let first = script.lines().next().unwrap_or_default();
    let more = if script.lines().nth(1).is_some() { " ..." } else { "" };
    format!("{first}{more}\nIts last lines:\n{}", qemu::last_lines(stdout))
}

/// Paths end a request's line.
fn one_line(path: &str) -> Result<&str> {
    if path.is_empty() || path.contains('\n') {
        bail!("{path:?} cannot be the path of a file in dom0");
    }
    Ok(path)
}

/// A file of dom0 that is read while it grows. Dropping it ends the reading.
#[derive(Debug)]
pub struct Follow {
    control: u16,
    stream: TcpStream,
    path: String,
    text: Vec<u8>,
    ended: bool,
}

impl Follow {
    /// All that was read so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.text).into_owned()
    }

    /// Reads until the file contains `word`, and returns all that was read so far.
    pub fn wait_for(&mut self, word: &str, timeout: Duration) -> Result<String> {
        let end = Instant::now() + timeout;
        loop {
            let text = self.text();
            if text.contains(word) {
                return Ok(text);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (path, last) = (&self.path, qemu::last_lines(&text));
                bail!("{path} did not contain {word:?} within {timeout:?}. Its last lines:\n{last}");
            }
            self.read_more(left.min(QUIET))?;
            if self.ended || self.text.len() == text.len() {
                self.again()?;
            }
        }
    }

    /// Begins anew: another file may have taken the place of the one that is read.
    fn again(&mut self) -> Result<()> {
        let stream = follow(self.control, &self.path);
        self.stream = stream.with_context(|| format!("cannot follow {} in dom0", self.path))?;
        (self.text, self.ended) = (Vec::new(), false);
        Ok(())
    }

    /// Reads what comes within `timeout`. Nothing new is no error.
    pub fn read_more(&mut self, timeout: Duration) -> Result<()> {
        // A timeout of zero would mean none at all.
        self.stream.set_read_timeout(Some(timeout.max(Duration::from_millis(1))))?;
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.ended = true,
            Ok(length) => self.text.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot follow {} in dom0", self.path)),
        }
        Ok(())
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        // The server in dom0 ends its `tail` when it sees this.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
