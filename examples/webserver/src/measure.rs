//! Pages for measuring the way to this machine, without its disk: `GET /-/bytes/N` and `PUT /-/discard`.

use crate::http::{Answer, Request};
use crate::site::Body;
use crate::transfer::Transfer;

/// More than any measurement wants, in bytes.
const MOST: u64 = 1 << 40;

/// The answer, or the taking in, of one of these pages; none: `name` is another page.
pub(super) fn handle(name: &str, request: &Request) -> Option<Result<Transfer, Answer>> {
    let method = request.method.as_str();
    if name == "discard" {
        return Some(match method {
            "PUT" if request.length.is_some() && !request.chunked => Ok(Transfer::Discard),
            "PUT" => Err(Answer::plain(411, "say Content-Length")),
            _ => Err(Answer::plain(405, "this page is only for sending to").with("Allow", "PUT")),
        });
    }
    let length = name.strip_prefix("bytes/")?;
    Some(Err(match length.parse() {
        Ok(length) if length <= MOST && matches!(method, "GET" | "HEAD") => {
            Answer { body: Body::Made(length), ..Answer::text(200, "application/octet-stream", "") }
        }
        Ok(_) if !matches!(method, "GET" | "HEAD") => {
            Answer::plain(405, "this page is only for reading").with("Allow", "GET, HEAD")
        }
        _ => Answer::plain(400, format_args!("{length} is no number of bytes, such as 1000000")),
    }))
}
