//! Files to and from the disk, as requests ask for them.

use alloc::format;
use alloc::string::String;
use core::fmt::Write;

use embedded_sdmmc::{Error, RawFile};

use crate::files::{Failure, Files, Node, Upload};
use crate::http::{Answer, Request};
use crate::report::escaped;
use crate::site::Body;
use crate::{Context, Disk, Machine};

/// A part of a file on its way to the peer.
#[derive(Debug)]
pub(super) struct Download {
    file: RawFile,
    at: u32,
    end: u32,
}

impl Download {
    pub(super) fn len(&self) -> u64 {
        u64::from(self.end - self.at)
    }
}

/// What a connection moves between its peer and the disk.
#[derive(Debug)]
pub(super) enum Transfer {
    None,
    Download(Download),
    Upload(Upload),
    /// So many bytes that are made up.
    Made(u64),
    /// Bytes that nobody wants.
    Discard,
}

impl Transfer {
    /// Bytes of a file that are left to send.
    pub(super) fn left(&self) -> usize {
        if let Self::Download(download) = self { download.len() as usize } else { 0 }
    }

    /// Whether nothing is left to send.
    pub(super) fn is_sent(&self) -> bool {
        match self {
            Self::Download(download) => download.len() == 0,
            Self::Made(left) => *left == 0,
            _ => true,
        }
    }

    /// Reads the next bytes to send into `room`.
    pub(super) fn fill<M: Machine>(
        &mut self,
        context: &Context<'_, M>,
        room: &mut [u8],
    ) -> (usize, Result<usize, ()>) {
        if let Self::Made(left) = self {
            let n = usize::try_from(*left).unwrap_or(usize::MAX).min(room.len());
            room.get_mut(..n).unwrap_or_default().fill(b'.');
            *left -= n as u64;
            return (n, Ok(n));
        }
        let (Self::Download(download), Some(files)) = (self, context.files) else {
            return (0, Ok(0));
        };
        let want = room.len().min(download.len() as usize);
        match files.read(download.file, download.at, room.get_mut(..want).unwrap_or_default()) {
            Ok(0) if want > 0 => (0, Err(())),
            Ok(n) => {
                download.at += n as u32;
                (n, Ok(n))
            }
            Err(e) => {
                log::error!("disk: reading: {e}");
                (0, Err(()))
            }
        }
    }

    /// Writes received bytes.
    pub(super) fn append<M: Machine>(&mut self, context: &Context<'_, M>, data: &[u8]) -> Result<(), Answer> {
        match (self, context.files) {
            (Self::Upload(upload), Some(files)) => files.append(upload, data).map_err(|e| failure(files, e)),
            _ => Ok(()),
        }
    }

    /// Completes an upload, in steps: the answer when it is in place, or why it is not.
    pub(super) fn finish<M: Machine>(&mut self, context: &Context<'_, M>) -> Option<Answer> {
        if let Self::Discard = self {
            return Some(Answer::text(204, "", ""));
        }
        let (Self::Upload(upload), Some(files)) = (self, context.files) else {
            return Some(Answer::plain(500, "nothing to finish"));
        };
        match files.finish(upload) {
            Ok(false) => None,
            Ok(true) if upload.replaced => Some(Answer::text(204, "", "")),
            Ok(true) => Some(Answer::plain(201, "written")),
            Err(e) => Some(failure(files, e)),
        }
    }

    /// Gives back whatever is open.
    pub(super) fn end<M: Machine>(&mut self, context: &Context<'_, M>, complete: bool) {
        match (core::mem::replace(self, Self::None), context.files) {
            (Self::Download(download), Some(files)) => files.release(download.file),
            (Self::Upload(upload), Some(files)) => files.end(upload, complete),
            _ => {}
        }
    }
}

/// Answers a request for a file or a directory.
pub(super) fn handle<D: Disk>(request: &Request, path: &str, files: &Files<D>) -> Result<Upload, Answer> {
    match request.method.as_str() {
        "PUT" => {
            let Some(length) = request.length.filter(|_| !request.chunked) else {
                return Err(Answer::plain(411, "say Content-Length"));
            };
            if length > files.size() {
                return Err(Answer::plain(413, "larger than the disk"));
            }
            files.create(path).map_err(|e| failure(files, e))
        }
        "DELETE" => {
            Err(files.delete(path).map_or_else(|e| failure(files, e), |()| Answer::text(204, "", "")))
        }
        _ => Err(read(request, path, files).unwrap_or_else(|e| failure(files, e))),
    }
}

fn read<D: Disk>(request: &Request, path: &str, files: &Files<D>) -> Result<Answer, Failure<D>> {
    match files.find(path)? {
        Node::File(file, size) => Ok(file_answer(request, path, file, size)),
        Node::Directory if !path.ends_with('/') => {
            let to = request.target.split('?').next().unwrap_or_default();
            Ok(Answer::plain(301, "a directory").with("Location", format_args!("{to}/")))
        }
        Node::Directory => {
            for index in ["index.html", "index.htm"] {
                if let Ok(Node::File(file, size)) = files.find(&format!("{path}{index}")) {
                    return Ok(file_answer(request, index, file, size));
                }
            }
            listing(path, files)
        }
    }
}

fn file_answer(request: &Request, path: &str, file: RawFile, size: u32) -> Answer {
    let range = request.range.as_deref().and_then(|range| parse_range(range, size));
    let (status, at, end) = match range {
        None => (200, 0, size),
        Some(Ok((at, end))) => (206, at, end),
        Some(Err(())) => (416, 0, 0),
    };
    let body = Body::File(Download { file, at, end });
    let kind = if status == 416 { "" } else { content_type(path) };
    let answer = Answer { status, kind, headers: String::new(), body }.with("Accept-Ranges", "bytes");
    match status {
        206 => answer.with("Content-Range", format_args!("bytes {at}-{}/{size}", end - 1)),
        416 => answer.with("Content-Range", format_args!("bytes */{size}")),
        _ => answer,
    }
}

/// The one range asked for, as first byte and end; none for what may be ignored (RFC 9110, section 14.2).
fn parse_range(text: &str, size: u32) -> Option<Result<(u32, u32), ()>> {
    let (first, last) = text.strip_prefix("bytes=")?.trim_ascii().split_once('-')?;
    let parse = |s: &str| s.trim_ascii().parse::<u64>().ok();
    let size = u64::from(size);
    let (at, end) = match (parse(first), parse(last)) {
        (Some(at), Some(last)) if at <= last => (at, size.min(last.saturating_add(1))),
        (Some(at), None) if last.is_empty() => (at, size),
        (None, Some(n)) if first.is_empty() => (size.saturating_sub(n), if n == 0 { 0 } else { size }),
        _ => return None,
    };
    Some(if at < end { Ok((at as u32, end as u32)) } else { Err(()) })
}

fn listing<D: Disk>(path: &str, files: &Files<D>) -> Result<Answer, Failure<D>> {
    let mut page = String::new();
    let title = escaped(&path);
    let _ = write!(
        page,
        "<!DOCTYPE html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\
         <style>body{{font:16px/1.6 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}}\
         td+td{{text-align:right;padding-left:2rem}}</style><h1>{title}</h1><table>"
    );
    if path != "/" {
        page.push_str("<tr><td><a href=\"../\">../</a><td>");
    }
    files.list(path, |name, directory, size| {
        let slash = if directory { "/" } else { "" };
        let _ =
            write!(page, "<tr><td><a href=\"./{}{slash}\">{}{slash}</a><td>", Quoted(name), escaped(&name));
        if !directory {
            let _ = write!(page, "{size}");
        }
    })?;
    page.push_str("</table><p><a href=\"/-/status\">Status</a></html>\n");
    Ok(Answer::text(200, "text/html; charset=utf-8", page))
}

/// A name in a link: what has a meaning in an address as %XX.
struct Quoted<'a>(&'a str);

impl core::fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.bytes().try_for_each(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => f.write_char(byte.into()),
            byte => write!(f, "%{byte:02X}"),
        })
    }
}

/// What became of the request, for the peer; what is our trouble also for the log.
fn failure<D: Disk>(files: &Files<D>, error: Failure<D>) -> Answer {
    let status = match &error {
        Error::NotFound => 404,
        Error::ReadOnly => 403,
        Error::OpenedFileAsDir
        | Error::OpenedDirAsFile
        | Error::DeleteNonEmptyDir
        | Error::FileAlreadyExists
        | Error::Unsupported => 409,
        Error::FilenameError(_) => {
            return Answer::plain(
                400,
                "new files need a name of at most 8 + 3 characters, such as notes.txt",
            );
        }
        Error::FileAlreadyOpen | Error::DirAlreadyOpen | Error::TooManyOpenFiles => {
            return Answer::plain(503, "in use; try again").with("Retry-After", 1);
        }
        Error::DiskFull | Error::NotEnoughSpace | Error::AllocationError => 507,
        _ => {
            log::error!("disk: {error}");
            if files.is_there() { 500 } else { 503 }
        }
    };
    Answer::plain(status, error)
}

fn content_type(path: &str) -> &'static str {
    let last = path.bytes().rposition(|byte| matches!(byte, b'.' | b'/'));
    let ending = last.and_then(|at| path.get(at..)?.strip_prefix('.')).unwrap_or_default();
    const TYPES: [(&str, &str); 20] = [
        ("html", "text/html; charset=utf-8"),
        ("htm", "text/html; charset=utf-8"),
        ("css", "text/css; charset=utf-8"),
        ("js", "text/javascript; charset=utf-8"),
        ("mjs", "text/javascript; charset=utf-8"),
        ("json", "application/json"),
        ("txt", "text/plain; charset=utf-8"),
        ("md", "text/plain; charset=utf-8"),
        ("rs", "text/plain; charset=utf-8"),
        ("toml", "text/plain; charset=utf-8"),
        ("xml", "application/xml"),
        ("svg", "image/svg+xml"),
        ("png", "image/png"),
        ("jpg", "image/jpeg"),
        ("jpeg", "image/jpeg"),
        ("gif", "image/gif"),
        ("ico", "image/x-icon"),
        ("woff2", "font/woff2"),
        ("wasm", "application/wasm"),
        ("pdf", "application/pdf"),
    ];
    let known = TYPES.iter().find(|(known, _)| ending.eq_ignore_ascii_case(known));
    known.map_or("application/octet-stream", |(_, kind)| kind)
}
