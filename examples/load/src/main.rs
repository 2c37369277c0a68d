//! Loads an HTTP server and prints how fast it answers. `cargo xtask bench linux` runs it in the test bed's dom0, and as
//! the taker of bytes in the Linux guest, so it needs no other program or library.
//!
//! ```text
//! load boot DOMAIN ADDRESS PATH                unpauses a domain; seconds until the first byte of an answer
//! load requests ADDRESS PATH CONNECTIONS TIME  for so many seconds a request on each connection, then all answers; requests per second
//! load get ADDRESS PATH CONNECTIONS TIME       each connection by itself as fast as it can, once at least; bytes of bodies per second
//! load put ADDRESS PATH CONNECTIONS TIME       the same the other way, in bodies of 8 MiB
//! load sink PORT                               a server that takes what it is sent and says 204
//! load traffic ADDRESS FILE CONNECTIONS WRITTEN TIMES COMMAND
//!                                              runs a command of the shell so many times, while the connections read parts of a file, and
//!                                              one more writes and reads another, "-": none; nothing may be lost; for each time how long
//!                                              the command took, nobody had an answer, and no domain ran
//! load block DEVICE                            reads and writes a disk, whose content is lost; a line for each kind
//! ```
//!
//! An address without a port means port 80.

mod disk;
mod domains;
mod traffic;

use std::env;
use std::io::{BufRead, BufReader, Error, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use domains::Xen;

/// A server that is silent for so long is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a guest that boots has to take a connection. What was sent before it was there is lost, so a try that waits
/// longer measures the wait.
const TRY: Duration = Duration::from_millis(20);
/// The size of a body that is sent.
const BODY: usize = 8 << 20;
/// What is read or written at once.
const PIECE: usize = 256 << 10;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["boot", domain, address, path] => boot(domain, address, path),
        ["requests", address, path, connections, time] => requests(address, path, connections, time),
        ["get", address, path, connections, time] => {
            each(address, connections, time, |stream, end| get(stream, path, end))
        }
        ["put", address, path, connections, time] => {
            each(address, connections, time, |stream, end| put(stream, path, end))
        }
        ["sink", port] => sink(port),
        ["traffic", address, file, readers, written, times, command] => {
            let written = Some(written).filter(|path| *path != "-");
            number(readers).and_then(|readers| {
                traffic::run(&traffic::Site { address, file, readers, written }, number(times)?, command)
            })
        }
        ["block", device] => disk::run(device),
        _ => Err(Error::other("boot, requests, get, put, sink, traffic or block; its source says with what")),
    };
    match result {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> Result<usize> {
    text.parse().map_err(|_| Error::other(format!("{text} is no number")))
}

fn seconds(text: &str) -> Result<Duration> {
    number(text).map(|number| Duration::from_secs(number as u64))
}

fn connect(address: &str, patience: Duration) -> Result<TcpStream> {
    let with_port = if address.contains(':') { address.to_owned() } else { format!("{address}:80") };
    let address: SocketAddr = with_port.parse().map_err(Error::other)?;
    let stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn boot(domain: &str, address: &str, path: &str) -> Result<String> {
    let (id, xen) = (domains::find(domain)?, Xen::open()?);
    let start = Instant::now();
    xen.unpause(id)?;
    let stream = loop {
        match connect(address, TRY) {
            Ok(stream) => break stream,
            Err(error) if start.elapsed() > PATIENCE => return Err(error),
            // A refusal comes at once.
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    };
    (&stream).write_all(head("GET", path, "").as_bytes())?;
    let mut reader = BufReader::new(&stream);
    reader.fill_buf()?;
    let took = start.elapsed();
    answer(&mut reader, &mut vec![0; PIECE])?;
    Ok(took.as_secs_f64().to_string())
}

fn head(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: guest\r\n{more}\r\n")
}

/// Reads one answer, and returns its body's length.
fn answer(reader: &mut impl BufRead, body: &mut [u8]) -> Result<usize> {
    let length = answer_head(reader)?;
    take(reader, length, body)?;
    Ok(length)
}

/// Reads the head of an answer, and returns its body's length.
fn answer_head(reader: &mut impl BufRead) -> Result<usize> {
    let (mut line, mut length) = (String::new(), None);
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).unwrap_or_default().to_owned();
    if !status.starts_with('2') {
        return Err(Error::other(format!("the answer begins with {line:?}")));
    }
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = Some(number(value.trim())?)
            }
            Some(_) => {}
            None => break,
        }
    }
    match length {
        None if status == "204" => Ok(0),
        None => Err(Error::other("an answer without a length")),
        Some(length) => Ok(length),
    }
}

/// Reads and forgets.
fn take(reader: &mut impl Read, length: usize, piece: &mut [u8]) -> Result<()> {
    let mut left = length;
    while left > 0 {
        let part = left.min(piece.len());
        let n = reader.read(&mut piece[..part])?;
        if n == 0 {
            return Err(Error::other("a body cut short"));
        }
        left -= n;
    }
    Ok(())
}

/// One thread asks on all connections and then reads all answers: a thread for each would mostly measure this machine's
/// changes from one to the next.
fn requests(address: &str, path: &str, connections: &str, time: &str) -> Result<String> {
    let open = |_| connect(address, PATIENCE);
    let streams = (0..number(connections)?).map(open).collect::<Result<Vec<_>>>()?;
    let mut readers: Vec<_> = streams.iter().map(BufReader::new).collect();
    let (request, mut body) = (head("GET", path, ""), vec![0; PIECE]);
    let (start, time, mut count) = (Instant::now(), seconds(time)?, 0_u32);
    while start.elapsed() < time {
        for mut stream in &streams {
            stream.write_all(request.as_bytes())?;
        }
        for reader in &mut readers {
            answer(reader, &mut body)?;
            count += 1;
        }
    }
    Ok(format!("{} {count}", f64::from(count) / start.elapsed().as_secs_f64()))
}

/// Runs as many workers as there are to be connections; each says how many bytes it moved.
fn each(
    address: &str,
    connections: &str,
    time: &str,
    worker: impl Fn(&TcpStream, Instant) -> Result<usize> + Sync,
) -> Result<String> {
    let open = |_| connect(address, PATIENCE);
    let streams = (0..number(connections)?).map(open).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    let end = start + seconds(time)?;
    let bytes = thread::scope(|scope| {
        let worker = &worker;
        let threads: Vec<_> = streams.iter().map(|stream| scope.spawn(move || worker(stream, end))).collect();
        threads.into_iter().try_fold(0, |sum, thread| match thread.join() {
            Ok(bytes) => Ok::<_, Error>(sum + bytes?),
            Err(_) => Err(Error::other("a thread panicked")),
        })
    })?;
    Ok(format!("{} {bytes}", bytes as f64 / start.elapsed().as_secs_f64()))
}

fn get(mut stream: &TcpStream, path: &str, end: Instant) -> Result<usize> {
    let (mut reader, mut body, mut bytes) = (BufReader::new(stream), vec![0; PIECE], 0);
    loop {
        stream.write_all(head("GET", path, "").as_bytes())?;
        bytes += answer(&mut reader, &mut body)?;
        if Instant::now() >= end {
            return Ok(bytes);
        }
    }
}

fn put(mut stream: &TcpStream, path: &str, end: Instant) -> Result<usize> {
    let (mut reader, mut body, mut bytes) = (BufReader::new(stream), vec![b'.'; PIECE], 0);
    while Instant::now() < end {
        stream.write_all(head("PUT", path, &format!("Content-Length: {BODY}\r\n")).as_bytes())?;
        for _ in 0..BODY / PIECE {
            stream.write_all(&body)?;
        }
        answer(&mut reader, &mut body)?;
        bytes += BODY;
    }
    Ok(bytes)
}

fn sink(port: &str) -> Result<String> {
    let port = u16::try_from(number(port)?).map_err(Error::other)?;
    for stream in TcpListener::bind(("0.0.0.0", port))?.incoming() {
        let stream = stream?;
        // A peer that is gone ends its own thread only.
        thread::spawn(move || swallow(&stream));
    }
    Ok(String::new())
}

fn swallow(mut stream: &TcpStream) -> Result<()> {
    let (mut reader, mut piece) = (BufReader::new(stream), vec![0; PIECE]);
    loop {
        let (mut line, mut length) = (String::new(), 0);
        while reader.read_line(&mut line)? > 0 && !line.trim_end().is_empty() {
            if let Some((name, value)) = line.split_once(':') {
                if name.eq_ignore_ascii_case("content-length") {
                    length = number(value.trim())?;
                }
            }
            line.clear();
        }
        if line.is_empty() {
            return Ok(());
        }
        take(&mut reader, length, &mut piece)?;
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
    }
}
