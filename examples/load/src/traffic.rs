//! Requests without end while something else is done with the server, which may not lose one of them.

use std::io::{BufReader, Error, Read, Result, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::domains::Xen;
use crate::{BODY, head};

/// A server that stands still for so long has lost its connections.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes that are asked for at once.
const PART: usize = 64 << 10;
/// Bytes that are written at once.
const PIECE: usize = 32 << 10;
/// How long a reader looks at what it got. Sixteen that do not would be all that one processor does, and the toolstack has the same.
const LOOK: Duration = Duration::from_millis(50);

/// What is asked for.
pub(crate) struct Site<'s> {
    pub(crate) address: &'s str,
    /// A file of more than [`PART`] bytes, of which parts are read.
    pub(crate) file: &'s str,
    /// Connections that read.
    pub(crate) readers: usize,
    /// A file that another connection writes, reads and writes anew.
    pub(crate) written: Option<&'s str>,
}

struct Traffic {
    over: AtomicBool,
    /// How many responses each reader has received, and how many pieces of a file the writer has sent.
    steps: Vec<AtomicU64>,
    /// The connections, which are all closed when one fails, so that no thread waits for its response any longer.
    streams: Mutex<Vec<TcpStream>>,
    /// Why the first connection failed.
    failed: Mutex<Option<String>>,
    /// Nobody had an answer.
    gap: Mutex<Gap>,
    /// A connection had none.
    waits: Vec<Mutex<Gap>>,
    /// No domain ran.
    stop: Mutex<Gap>,
}

/// The longest time between two events.
struct Gap {
    last: Instant,
    longest: Duration,
}

impl Gap {
    fn new() -> Mutex<Self> {
        Mutex::new(Self { last: Instant::now(), longest: Duration::ZERO })
    }

    fn look(&mut self) {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
    }
}

/// Runs `command` so many times under traffic. After each time every connection has to go on. A wrong answer and a connection
/// that ends are errors.
pub(crate) fn run(site: &Site<'_>, times: usize, command: &str) -> Result<String> {
    let connections = site.readers + usize::from(site.written.is_some());
    let traffic = &Traffic {
        over: AtomicBool::new(false),
        steps: (0..connections).map(|_| AtomicU64::new(0)).collect(),
        streams: Mutex::default(),
        failed: Mutex::default(),
        gap: Gap::new(),
        waits: (0..connections).map(|_| Gap::new()).collect(),
        stop: Gap::new(),
    };
    let content: Arc<[u8]> = Connection::open(site.address)?.ask("GET", site.file, "", b"")?.into();
    if content.len() <= PART {
        return Err(Error::other("the file is too small"));
    }
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for number in 0..site.readers {
            let content = Arc::clone(&content);
            workers.push(scope.spawn(move || {
                traffic.until_over(number, || Ok(Box::new(Reader::new(site, content, number)?)));
            }));
        }
        workers.extend(site.written.map(|path| {
            scope.spawn(move || traffic.until_over(site.readers, || Ok(Box::new(Writer::new(site, path)?))))
        }));
        let domains = scope.spawn(move || traffic.watch_domains());
        let done = (1..=times).try_for_each(|time| traffic.round(time, command));
        traffic.over.store(true, Ordering::Relaxed);
        workers.into_iter().for_each(|worker| _ = worker.join());
        let watched = domains.join().unwrap_or_else(|_| Err(Error::other("a thread panicked")));
        match with(&traffic.failed, |failed| failed.take()) {
            Some(why) => Err(Error::other(why)),
            None => done.and(watched),
        }
    })?;
    let steps: u64 = traffic.seen().iter().sum();
    Ok(format!("traffic: {steps} steps of {connections} connections, {times} times, nothing lost"))
}

impl Traffic {
    fn seen(&self) -> Vec<u64> {
        self.steps.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// Runs the command, and waits until every connection has asked, and been answered, since.
    fn round(&self, time: usize, command: &str) -> Result<()> {
        self.all_go_on()?;
        let gaps = || [&self.gap, &self.stop].into_iter().chain(&self.waits);
        gaps().for_each(|gap| with(gap, |gap| gap.longest = Duration::ZERO));
        let start = Instant::now();
        let output = Command::new("/bin/bash").args(["-c", command]).output()?;
        let took = start.elapsed();
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            return Err(Error::other(format!(
                "{command}: {}\n{}",
                output.status,
                String::from_utf8_lossy(&said)
            )));
        }
        self.all_go_on()?;
        let longest = |gap| with(gap, |gap: &mut Gap| gap.longest).as_millis();
        let (took, wait) = (took.as_millis(), self.waits.iter().map(longest).max().unwrap_or_default());
        let [gap, stop] = [&self.gap, &self.stop].map(longest);
        println!("time {time} command_ms={took} gap_ms={gap} wait_ms={wait} stop_ms={stop}");
        Ok(())
    }

    /// Looks whether a domain runs, until all is over.
    fn watch_domains(&self) -> Result<()> {
        let xen = Xen::open()?;
        while !self.over.load(Ordering::Relaxed) {
            if xen.any_runs()? {
                with(&self.stop, Gap::look);
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn all_go_on(&self) -> Result<()> {
        let (before, end) = (self.seen(), Instant::now() + PATIENCE);
        // The next answer may be to a question of before.
        while !self.seen().iter().zip(&before).all(|(now, before)| *now >= before + 2) {
            if self.over.load(Ordering::Relaxed) {
                return Err(Error::other("the traffic has ended"));
            }
            if Instant::now() > end {
                let now = self.seen();
                return Err(Error::other(format!(
                    "not every connection goes on: {before:?} steps before, {now:?} now"
                )));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Runs until all is over; after an error, that is now.
    fn until_over(&self, number: usize, work: impl FnOnce() -> Result<Box<dyn Work>>) {
        let step = &mut || {
            self.steps.get(number).map(|count| count.fetch_add(1, Ordering::Relaxed));
            with(&self.gap, Gap::look);
            self.waits.get(number).into_iter().for_each(|gap| with(gap, Gap::look));
        };
        crate::domains::step_back();
        let done = work().and_then(|mut work| {
            let stream = work.stream().try_clone()?;
            with(&self.streams, |streams| streams.push(stream));
            while !self.over.load(Ordering::Relaxed) {
                work.once(step)?;
            }
            work.end()
        });
        let Err(error) = done else { return };
        with(&self.failed, |failed| {
            _ = failed.get_or_insert_with(|| format!("connection {number}: {error}"))
        });
        self.over.store(true, Ordering::Relaxed);
        with(&self.streams, |streams| {
            // One that is closed already is.
            streams.iter().for_each(|stream| _ = stream.shutdown(std::net::Shutdown::Both));
        });
    }
}

fn with<T, R>(place: &Mutex<T>, f: impl FnOnce(&mut T) -> R) -> R {
    f(&mut place.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// What a connection does again and again.
trait Work {
    fn once(&mut self, step: &mut dyn FnMut()) -> Result<()>;

    fn stream(&self) -> &TcpStream;

    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}

struct Reader {
    connection: Connection,
    file: String,
    content: Arc<[u8]>,
    at: usize,
}

impl Reader {
    fn new(site: &Site<'_>, content: Arc<[u8]>, number: usize) -> Result<Self> {
        let at = number * PART % (content.len() - PART);
        Ok(Self { connection: Connection::open(site.address)?, file: site.file.to_owned(), content, at })
    }
}

impl Work for Reader {
    fn stream(&self) -> &TcpStream {
        self.connection.0.get_ref()
    }

    fn once(&mut self, step: &mut dyn FnMut()) -> Result<()> {
        let range = self.at..self.at + PART;
        let more = format!("Range: bytes={}-{}\r\n", range.start, range.end - 1);
        if self.content.get(range) != Some(&*self.connection.ask("GET", &self.file, &more, b"")?) {
            return Err(Error::other(format!("another part of {} at {}", &self.file, self.at)));
        }
        self.at = (self.at + 17 * PART) % (self.content.len() - PART);
        step();
        thread::sleep(LOOK);
        Ok(())
    }
}

struct Writer {
    connection: Connection,
    path: String,
    body: Vec<u8>,
}

impl Writer {
    fn new(site: &Site<'_>, path: &str) -> Result<Self> {
        let body = (0..BODY as u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 23) as u8).collect();
        Ok(Self { connection: Connection::open(site.address)?, path: path.to_owned(), body })
    }
}

impl Work for Writer {
    fn stream(&self) -> &TcpStream {
        self.connection.0.get_ref()
    }

    fn once(&mut self, step: &mut dyn FnMut()) -> Result<()> {
        let head = head("PUT", &self.path, &format!("Content-Length: {}\r\n", self.body.len()));
        let stream = &mut self.connection.0.get_ref();
        stream.write_all(head.as_bytes())?;
        for piece in self.body.chunks(PIECE) {
            stream.write_all(piece)?;
            step();
        }
        self.connection.answer()?;
        if self.connection.ask("GET", &self.path, "", b"")? != self.body {
            return Err(Error::other(format!("{} is not what was written", self.path)));
        }
        // Another file each time.
        self.body.rotate_left(1);
        step();
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.connection.ask("DELETE", &self.path, "", b"").map(drop)
    }
}

struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(address: &str) -> Result<Self> {
        let stream = crate::connect(address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn ask(&mut self, method: &str, path: &str, more: &str, body: &[u8]) -> Result<Vec<u8>> {
        let stream = &mut self.0.get_ref();
        stream.write_all(head(method, path, more).as_bytes())?;
        stream.write_all(body)?;
        self.answer()
    }

    /// The body of an answer.
    fn answer(&mut self) -> Result<Vec<u8>> {
        let length = crate::answer_head(&mut self.0)?;
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(body)
    }
}
