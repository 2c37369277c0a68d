//! What the server answers: its own pages under `/-/`, and the files of the disk.

use alloc::string::String;
use alloc::vec::Vec;

use crate::http::{Answer, Request, Server, own_page};
use crate::measure;
use crate::transfer::{self, Download, Transfer};
use crate::{Context, Machine};

/// The bytes of an answer after its head.
#[derive(Debug)]
pub(super) enum Body {
    Text(String),
    File(Download),
    /// So many bytes that mean nothing.
    Made(u64),
}

impl Body {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::File(download) => download.len(),
            Self::Made(length) => *length,
        }
    }

    pub(super) fn release<M: Machine>(self, context: &Context<'_, M>) {
        if let Self::File(download) = self {
            Transfer::Download(download).end(context, false);
        }
    }
}

/// Decides on a request: a body to receive, or the answer.
pub(super) fn handle<M: Machine>(request: &Request, server: &Server<'_, M>) -> Result<Transfer, Answer> {
    let path =
        ['?', '#'].iter().fold(&*request.target, |path, end| path.split(*end).next().unwrap_or_default());
    let Some(path) = decode(path).filter(|path| is_clean(path)) else {
        return Err(Answer::plain(400, "the path is not one of this server"));
    };
    let reads = matches!(request.method.as_str(), "GET" | "HEAD");
    if !reads && !matches!(request.method.as_str(), "PUT" | "DELETE") {
        return Err(
            Answer::plain(405, "only GET, HEAD, PUT and DELETE").with("Allow", "GET, HEAD, PUT, DELETE")
        );
    }
    if let Some(name) = path.strip_prefix("/-/") {
        if let Some(measured) = measure::handle(name, request) {
            return measured;
        }
        return Err(match own_page(name, server) {
            None => Answer::plain(404, "there is /-/status, /-/metrics, /-/bytes/N and /-/discard"),
            Some(page) if reads => page,
            Some(_) => Answer::plain(405, "this page is only for reading").with("Allow", "GET, HEAD"),
        });
    }
    match server.context.files {
        None => Err(no_files()),
        Some(files) => transfer::handle(request, &path, files).map(Transfer::Upload),
    }
}

fn no_files() -> Answer {
    let page = "<!DOCTYPE html><title>No files</title><h1>No files</h1>\
        <p>This machine has no disk that it can read. <a href=\"/-/status\">Status</a></p>\n";
    Answer::text(503, "text/html; charset=utf-8", page)
}

/// Resolves %XX.
fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        out.push(if byte == b'%' { (digit()? * 16 + digit()?) as u8 } else { byte });
    }
    String::from_utf8(out).ok()
}

/// Absolute, of printable characters, and without names that leave the tree.
fn is_clean(path: &str) -> bool {
    path.starts_with('/')
        && path.split('/').all(|name| name != "." && name != "..")
        && !path.contains(|c: char| c.is_control() || c == '\\')
}
