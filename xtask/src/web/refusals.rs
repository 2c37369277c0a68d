//! Requests that are wrong, slow or too many.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{PATIENCE, Site};

pub(super) fn each_mistake_has_its_status(site: &Site) -> Result<()> {
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "y".repeat(9000));
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(100));
    for (status, request) in [
        (400, "this is no request\r\n\r\n"),
        (400, "GET /../etc/passwd HTTP/1.1\r\nConnection: close\r\n\r\n"),
        (400, "GET /%zz HTTP/1.1\r\nConnection: close\r\n\r\n"),
        (400, "GET /hello.txt HTTP/1.1\r\nContent-Length: x\r\n\r\n"),
        (400, "PUT /a.txt HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        (404, "GET /none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        (404, "GET /-/none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        (405, "POST /hello.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        (405, "DELETE /-/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        (405, "GET /-/discard HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        (405, "PUT /-/bytes/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
        (400, "GET /-/bytes/-1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        (411, "PUT /-/discard HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        (409, "DELETE /folder HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        (411, "PUT /a.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        (413, "PUT /a.txt HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"),
        (431, &long),
        (431, &many),
    ] {
        let answer = site.raw(request.as_bytes())?;
        let asked = request.lines().next().unwrap_or_default();
        ensure!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{asked}: {status} expected, not {answer}"
        );
    }
    let allowed = site.raw(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    ensure!(allowed.contains("Allow: GET, HEAD, PUT, DELETE"), "405 without what is allowed: {allowed}");
    // None of it made a file.
    site.get("/a.txt")?.expect(404)?;
    Ok(())
}

pub(super) fn requests_share_a_connection(site: &Site) -> Result<()> {
    let mut stream = site.connect()?;
    // Two at once, then the last: the answers come in order.
    stream.write_all(
        b"GET /hello.txt HTTP/1.1\r\nHost: x\r\n\r\nHEAD /large.bin HTTP/1.1\r\nHost: x\r\n\r\n",
    )?;
    stream.write_all(b"GET /none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let at = |word: &str| answer.find(word).with_context(|| format!("no {word:?} in {answer}"));
    let (first, second, third) =
        (at("Hello from the disk.")?, at("Content-Length: 8388608")?, at("HTTP/1.1 404 ")?);
    ensure!(first < second && second < third, "not in order: {answer}");
    Ok(())
}

pub(super) fn a_body_that_stalls_holds_up_nobody(site: &Site) -> Result<()> {
    let mut stalled = site.connect()?;
    stalled.write_all(
        b"PUT /slow.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10\r\n\r\nfirst",
    )?;
    let start = Instant::now();
    for _ in 0..10 {
        site.get("/hello.txt")?.expect(200)?;
    }
    let took = start.elapsed();
    ensure!(took < PATIENCE / 4, "ten requests took {took:?} beside a stalled body");
    stalled.write_all(b"-last")?;
    let mut answer = String::new();
    stalled.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    ensure!(site.get("/slow.txt")?.expect(200)?.body == b"first-last", "another body was written");
    site.delete("/slow.txt")?.expect(204)?;
    Ok(())
}

pub(super) fn the_thirty_third_connection_is_told_to_come_back(site: &Site) -> Result<()> {
    // Connections of other checks may not have ended yet, on either side.
    let free = |site: &Site| -> Result<()> {
        let end = Instant::now() + PATIENCE;
        // The one that asks is counted, and refused too while there are too many.
        while site.get("/-/metrics")?.status == 503 || site.metric("http_open_connections")? > 1 {
            ensure!(Instant::now() < end, "connections that have ended stay open");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    };
    free(site)?;
    let mut crowd: Vec<TcpStream> = (0..32).map(|_| site.connect()).collect::<Result<_>>()?;
    for (number, stream) in crowd.iter_mut().enumerate() {
        stream.write_all(b"GET /hello.txt HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut start = [0; 12];
        stream.read_exact(&mut start)?;
        ensure!(&start == b"HTTP/1.1 200", "connection {} is refused", number + 1);
    }
    let refused = site.raw(b"GET /hello.txt HTTP/1.1\r\nHost: x\r\n\r\n")?;
    ensure!(refused.starts_with("HTTP/1.1 503 "), "connection 33: {refused}");
    ensure!(refused.contains("Retry-After: "), "503 does not say when to come back: {refused}");
    drop(crowd);
    free(site)
}
