//! What the web server has to do, checked from outside over TCP: the same checks wherever the server runs.

mod files;
mod load;
mod pages;
mod refusals;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ureq::Agent;
use ureq::http::{HeaderMap, Response};

/// No answer of the server takes this long, on the slowest bed.
const PATIENCE: Duration = Duration::from_secs(60);
/// The size of [`Site::LARGE`], in bytes.
const LARGE_SIZE: usize = 8 << 20;

/// One thing that the server has to do.
pub type Check = (&'static str, fn(&Site) -> Result<()>);

/// All of them, each leaving the disk as it found it.
pub const CHECKS: &[Check] = &[
    ("web-file", files::a_file_comes_with_its_type_and_length),
    ("web-names", files::long_names_and_folders_are_found_in_any_case),
    ("web-listing", files::a_folder_is_listed),
    ("web-range", files::a_part_of_a_file_can_be_asked_for),
    ("web-large", files::eight_mebibytes_arrive_unchanged),
    ("web-put", files::a_file_is_written_replaced_and_deleted),
    ("web-status", pages::the_status_page_is_html_that_needs_no_script),
    ("web-metrics", pages::the_metrics_are_in_the_format_of_prometheus),
    ("web-measure", pages::bytes_are_made_and_taken_without_a_disk),
    ("web-errors", refusals::each_mistake_has_its_status),
    ("web-keep-alive", refusals::requests_share_a_connection),
    ("web-stalled", refusals::a_body_that_stalls_holds_up_nobody),
    ("web-crowd", refusals::the_thirty_third_connection_is_told_to_come_back),
    ("web-thousand", load::a_thousand_requests_over_sixteen_connections),
];

/// A server under test.
#[derive(Debug)]
pub struct Site {
    address: SocketAddr,
    agent: Agent,
}

impl Site {
    /// A file on the disk of [`contents`].
    const SMALL: &str = "hello.txt";
    /// Another, of 8 MiB.
    const LARGE: &str = "large.bin";

    /// The server behind a port of this machine.
    pub fn new(port: u16) -> Self {
        Self { address: (Ipv4Addr::LOCALHOST, port).into(), agent: agent(0) }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Asks for a page; any status is an answer.
    pub fn get(&self, path: &str) -> Result<Answer> {
        answer(self.agent.get(self.url(path)).call())
    }

    fn get_range(&self, path: &str, range: &str) -> Result<Answer> {
        answer(self.agent.get(self.url(path)).header("Range", range).call())
    }

    fn head(&self, path: &str) -> Result<Answer> {
        answer(self.agent.head(self.url(path)).call())
    }

    /// Writes a file.
    pub fn put(&self, path: &str, body: &[u8]) -> Result<Answer> {
        answer(self.agent.put(self.url(path)).send(body))
    }

    /// Deletes a file.
    pub fn delete(&self, path: &str) -> Result<Answer> {
        answer(self.agent.delete(self.url(path)).call())
    }

    fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Sends bytes as they are, and reads until the server ends the connection.
    fn raw(&self, request: &[u8]) -> Result<String> {
        let mut stream = self.connect()?;
        stream.write_all(request)?;
        let mut answer = Vec::new();
        // A server that refuses a request without reading all of it may reset the connection after its answer.
        let _ = stream.read_to_end(&mut answer);
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// A value of the metrics page.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let page = self.get("/-/metrics")?.expect(200)?.text()?;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok()).with_context(|| format!("no metric {name} in\n{page}"))
    }
}

/// Whole answers, no redirections, and up to `idle` connections that are kept for the next request.
fn agent(idle: usize) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_idle_connections(idle)
        .timeout_global(Some(PATIENCE))
        .build()
        .into()
}

/// An answer in full.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

fn answer(result: Result<Response<ureq::Body>, ureq::Error>) -> Result<Answer> {
    let (parts, mut body) = result?.into_parts();
    let body = body.with_config().limit(64 << 20).read_to_vec()?;
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
}

impl Answer {
    /// The answer itself, if it has this status.
    pub fn expect(self, status: u16) -> Result<Self> {
        ensure!(
            self.status == status,
            "status {} instead of {status}: {}",
            self.status,
            String::from_utf8_lossy(&self.body)
        );
        Ok(self)
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(self) -> Result<String> {
        Ok(String::from_utf8(self.body)?)
    }
}

/// The files that the checks want to find on the disk.
pub fn contents() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        (Site::SMALL, b"Hello from the disk.\n".to_vec()),
        (Site::LARGE, large()),
        ("folder/A note with a long name.html", b"<!DOCTYPE html><title>note</title>".to_vec()),
        ("folder/deeper/style.css", b"body{color:#123}".to_vec()),
    ]
}

/// Bytes without a pattern that a mistake in a block or a packet could hide behind.
fn large() -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..LARGE_SIZE / 8).flat_map(|_| next()).collect()
}
