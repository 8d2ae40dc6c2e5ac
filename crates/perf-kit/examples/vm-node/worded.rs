//! Words for what the HTTP library refuses by itself.
//!
//! A head that is no HTTP, or far too long, never gets to the routes: the library answers it with a status and no body. Here
//! that answer gets the body that all other errors have.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use serde_json::json;

/// A stream that an HTTP server writes its answers to.
#[derive(Debug)]
pub(crate) struct Worded<S> {
    stream: S,
    instead: Option<Instead>,
}

/// What is written in the place of an answer without a body.
#[derive(Debug)]
struct Instead {
    bytes: Vec<u8>,
    written: usize,
    /// How many bytes the answer had.
    replaced: usize,
}

impl<S> Worded<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            instead: None,
        }
    }
}

/// The same answer with a body, if this is a refusal without one. All answers of the routes have one.
fn worded(head: &[u8]) -> Option<Vec<u8>> {
    // Nearly all answers are none of these, and are not looked at further.
    if head.get(9) != Some(&b'4') {
        return None;
    }
    let text = std::str::from_utf8(head).ok()?;
    let rest = text
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| text.strip_prefix("HTTP/1.0 "))?;
    let (line, headers) = rest.split_once("\r\n")?;
    let is_bare = headers.ends_with("\r\n\r\n") || headers == "\r\n";
    let is_empty = headers
        .to_ascii_lowercase()
        .contains("content-length: 0\r\n");
    if !line.starts_with('4') || !is_bare || !is_empty {
        return None;
    }
    let (code, message) = match line.get(..3)? {
        "414" => (
            "long_target",
            "the path with its query is too long: no route needs more than 2 KiB",
        ),
        "431" => (
            "long_headers",
            "the headers are too long or too many: no request needs more than 16 KiB",
        ),
        _ => ("malformed", "this is no HTTP/1.1 request: see RFC 9112"),
    };
    let body = json!({ "error": code, "message": message }).to_string();
    let answer = format!(
        "HTTP/1.1 {line}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    Some(answer.into_bytes())
}

impl<S: Write + Unpin> Worded<S> {
    /// Writes what stands in the place of `head`, if something does; then `head` counts as written.
    fn poll_instead(
        &mut self,
        cx: &mut Context<'_>,
        head: &[u8],
    ) -> Poll<io::Result<Option<usize>>> {
        if self.instead.is_none() {
            self.instead = worded(head).map(|bytes| Instead {
                bytes,
                written: 0,
                replaced: head.len(),
            });
        }
        let Some(instead) = &mut self.instead else {
            return Poll::Ready(Ok(None));
        };
        while instead.written < instead.bytes.len() {
            let rest = &instead.bytes[instead.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => instead.written += written,
            }
        }
        let replaced = instead.replaced;
        self.instead = None;
        Poll::Ready(Ok(Some(replaced)))
    }
}

impl<S: Read + Unpin> Read for Worded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: Write + Unpin> Write for Worded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match ready!(self.poll_instead(cx, bytes))? {
            Some(written) => Poll::Ready(Ok(written)),
            None => Pin::new(&mut self.stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.first().map_or(&[] as &[u8], |first| first);
        match ready!(self.poll_instead(cx, first))? {
            Some(written) => Poll::Ready(Ok(written)),
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
