//! The web server: one page, the figures, and the disk as it is.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use core::ops::Range;

use embassy_net::Stack;
use embassy_net::tcp::{Error, TcpSocket};
use embassy_time::Duration;
use xen_blkfront::State;
use xen_hypercall::{Platform, Wait};

use crate::Domain;
use crate::disk::{Part, SECTOR};
use crate::figures::{self, count};

/// So many connections are served at once.
pub(crate) const CONNECTIONS: usize = 3;
/// Who says nothing for so long is not waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const PORT: u16 = 80;

/// Serves one connection after the other.
pub(crate) async fn serve<P: Platform + Wait>(domain: &'static Domain<P>, stack: Stack<'static>) {
    let (mut received, mut to_send) = (vec![0; 4 << 10], vec![0; 32 << 10]);
    loop {
        let mut socket = TcpSocket::new(stack, &mut received, &mut to_send);
        socket.set_timeout(Some(PATIENCE));
        if socket.accept(PORT).await.is_err() {
            continue;
        }
        // Whoever goes away in the middle gets no more.
        let answered = answer(domain, &mut socket).await;
        if answered.is_ok() {
            count(&domain.figures.answers, 1);
        }
        socket.close();
        let _ = socket.flush().await;
        socket.abort();
        let _ = socket.flush().await;
    }
}

async fn answer<P: Platform + Wait>(domain: &Domain<P>, socket: &mut TcpSocket<'_>) -> Result<(), Error> {
    let mut request = [0; 1024];
    let Some(path) = path(socket, &mut request).await? else {
        return text(socket, "400 Bad Request", "no request that this server knows\n").await;
    };
    match path {
        "/" => {
            let page = format!("Hello from tasks.\nmessage: {}\n", domain.message.borrow());
            text(socket, "200 OK", &page).await
        }
        "/stats" => {
            let mut page = String::new();
            let _ = figures::write(domain, &mut page);
            text(socket, "200 OK", &page).await
        }
        _ => match range(domain, path) {
            Some(range) => disk(domain, socket, range).await,
            None => text(socket, "404 Not Found", "there is /, /stats, /disk, and /disk/FIRST/COUNT\n").await,
        },
    }
}

/// What is asked for, once the request is whole. None: that is no path, or the request is too long.
async fn path<'r>(socket: &mut TcpSocket<'_>, request: &'r mut [u8]) -> Result<Option<&'r str>, Error> {
    let mut len = 0;
    loop {
        let room = request.get_mut(len..).unwrap_or_default();
        match socket.read(room).await? {
            0 => return Ok(None),
            read => len += read,
        }
        if request.get(..len).unwrap_or_default().windows(4).any(|end| end == b"\r\n\r\n") {
            break;
        }
    }
    let request = core::str::from_utf8(request.get(..len).unwrap_or_default()).unwrap_or_default();
    Ok(request.strip_prefix("GET ").and_then(|rest| rest.split(' ').next()))
}

async fn text(socket: &mut TcpSocket<'_>, status: &str, page: &str) -> Result<(), Error> {
    head(socket, status, "text/plain", page.len() as u64).await?;
    write_all(socket, page.as_bytes()).await
}

async fn head(socket: &mut TcpSocket<'_>, status: &str, kind: &str, len: u64) -> Result<(), Error> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n"
    );
    write_all(socket, head.as_bytes()).await
}

async fn write_all(socket: &mut TcpSocket<'_>, data: &[u8]) -> Result<(), Error> {
    let mut rest = data;
    while !rest.is_empty() {
        let count = socket.write(rest).await?;
        rest = rest.get(count..).unwrap_or_default();
    }
    Ok(())
}

/// Which sectors a path names: all of the disk, or some. Of those there may be fewer.
fn range<P: Platform + Wait>(domain: &Domain<P>, path: &str) -> Option<Range<u64>> {
    let capacity = domain.disk.handle().capacity();
    let rest = path.strip_prefix("/disk")?;
    if rest.is_empty() {
        return Some(0..capacity);
    }
    let (first, count) = rest.strip_prefix('/')?.split_once('/')?;
    let (first, count): (u64, u64) = (first.parse().ok()?, count.parse().ok()?);
    Some(first..first.saturating_add(count).min(capacity).max(first))
}

/// A part of the disk, with many requests under way. If the disk goes away the answer ends too early, which its reader sees.
async fn disk<P: Platform + Wait>(
    domain: &Domain<P>,
    socket: &mut TcpSocket<'_>,
    sectors: Range<u64>,
) -> Result<(), Error> {
    if domain.disk.handle().state() != Some(State::Connected) {
        return text(socket, "503 Service Unavailable", "there is no disk\n").await;
    }
    let len = (sectors.end - sectors.start) * SECTOR;
    head(socket, "200 OK", "application/octet-stream", len).await?;
    let (mut part, mut sectors) = (Part::new(), sectors);
    while !sectors.is_empty() {
        let Ok(bytes @ [_, ..]) = part.read(domain, sectors.clone()).await else {
            // Not as long as it was said to be.
            socket.abort();
            return Err(Error::ConnectionReset);
        };
        sectors.start += bytes.len() as u64 / SECTOR;
        write_all(socket, bytes).await?;
    }
    Ok(())
}
