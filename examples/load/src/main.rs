//! Loads an HTTP server and prints how fast it answers. `cargo xtask bench linux` runs it in the test bed's dom0, so it
//! needs nothing but the standard library.
//!
//! ```text
//! load boot DOMAIN ADDRESS PATH          unpauses a domain; microseconds until the first byte of an answer
//! load get ADDRESS PATH CONNECTIONS N    N requests in all; requests per second, bytes of bodies per second
//! load put ADDRESS PATH BYTES            one upload; bytes per second
//! ```

use std::env;
use std::io::{BufRead, BufReader, Error, Read, Result, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

/// A server that is silent for so long is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one try of `boot` waits. A server that is not there yet may leave a question without any answer.
const TRY: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["boot", domain, address, path] => boot(domain, address, path),
        ["get", address, path, connections, requests] => get(address, path, connections, requests),
        ["put", address, path, bytes] => put(address, path, bytes),
        _ => Err(Error::other(
            "load boot DOMAIN ADDRESS PATH | get ADDRESS PATH CONNECTIONS N | put ADDRESS PATH BYTES",
        )),
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

fn connect(address: &str, patience: Duration) -> Result<TcpStream> {
    let address: Ipv4Addr = address.parse().map_err(Error::other)?;
    let stream = TcpStream::connect_timeout(&SocketAddr::from((address, 80)), patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn boot(domain: &str, address: &str, path: &str) -> Result<String> {
    let start = Instant::now();
    let mut xl = Command::new("xl").args(["unpause", domain]).spawn()?;
    let first_byte = || -> Result<()> {
        let mut stream = connect(address, TRY)?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: guest\r\n\r\n").as_bytes())?;
        stream.read_exact(&mut [0])
    };
    while let Err(error) = first_byte() {
        if start.elapsed() > PATIENCE {
            return Err(error);
        }
        // A refusal comes at once.
        thread::sleep(Duration::from_millis(2));
    }
    let took = start.elapsed();
    xl.wait()?;
    Ok(took.as_micros().to_string())
}

/// Reads one answer, and returns its body's length.
fn answer(reader: &mut impl BufRead, body: &mut [u8]) -> Result<usize> {
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
    let length = match length {
        None if status == "204" => 0,
        None => return Err(Error::other("an answer without a length")),
        Some(length) => length,
    };
    let mut left = length;
    while left > 0 {
        let part = left.min(body.len());
        let n = reader.read(&mut body[..part])?;
        if n == 0 {
            return Err(Error::other("an answer cut short"));
        }
        left -= n;
    }
    Ok(length)
}

fn get(address: &str, path: &str, connections: &str, requests: &str) -> Result<String> {
    let (connections, requests) = (number(connections)?.max(1), number(requests)?);
    let each = requests.div_ceil(connections);
    let open = |_| connect(address, PATIENCE);
    let streams = (0..connections).map(open).collect::<Result<Vec<_>>>()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: guest\r\n\r\n");
    let start = Instant::now();
    let bytes = thread::scope(|scope| {
        let worker = |stream: TcpStream| {
            let (mut reader, mut body) = (BufReader::new(&stream), vec![0; 64 << 10]);
            (0..each).try_fold(0, |sum, _| {
                (&stream).write_all(request.as_bytes())?;
                Ok::<_, Error>(sum + answer(&mut reader, &mut body)?)
            })
        };
        let threads: Vec<_> = streams.into_iter().map(|stream| scope.spawn(move || worker(stream))).collect();
        threads.into_iter().try_fold(0, |sum, thread| match thread.join() {
            Ok(bytes) => Ok(sum + bytes?),
            Err(_) => Err(Error::other("a thread panicked")),
        })
    })?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(format!("{} {}", (each * connections) as f64 / seconds, bytes as f64 / seconds))
}

fn put(address: &str, path: &str, bytes: &str) -> Result<String> {
    let (bytes, part) = (number(bytes)?, vec![0x5A; 64 << 10]);
    let mut stream = connect(address, PATIENCE)?;
    let start = Instant::now();
    stream.write_all(
        format!("PUT {path} HTTP/1.1\r\nHost: guest\r\nContent-Length: {bytes}\r\n\r\n").as_bytes(),
    )?;
    let mut left = bytes;
    while left > 0 {
        let n = left.min(part.len());
        stream.write_all(&part[..n])?;
        left -= n;
    }
    answer(&mut BufReader::new(&stream), &mut vec![0; 4096])?;
    Ok(format!("{}", bytes as f64 / start.elapsed().as_secs_f64()))
}
