//! Streams of items, which are sent in chunks and arrive as they were sent.

use crate::body::{AnswerBody, Chunks};
use crate::call::Call;
use crate::error::TransportError;
use crate::proto::Kind;
use bytes::{Buf, Bytes, BytesMut};
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Before each item: its length, little endian.
const LENGTH_BYTES: usize = 4;
/// Items up to this size are copied behind their length; larger ones stay where they are.
const COPIED_BYTES_MAX: usize = 1024;

/// Assembles items from chunks.
#[derive(Debug, Default)]
pub(crate) struct ItemReader {
    /// The first part of an item, with its length in front.
    begun: BytesMut,
    chunk: Bytes,
}

impl ItemReader {
    pub(crate) fn receive(&mut self, chunk: Bytes) {
        self.chunk = chunk;
    }

    /// Whether an item has begun and is not whole.
    pub(crate) fn is_within_item(&self) -> bool {
        !self.begun.is_empty() || !self.chunk.is_empty()
    }

    /// The next item, if it is there. Costs a copy where it lies in several chunks.
    ///
    /// # Errors
    /// The length of an item that is longer than `bytes_max`.
    pub(crate) fn next(&mut self, bytes_max: usize) -> Result<Option<Bytes>, usize> {
        loop {
            let head = if self.begun.is_empty() {
                &self.chunk[..]
            } else {
                &self.begun[..]
            };
            let Some(length) = head.first_chunk::<LENGTH_BYTES>() else {
                if self.chunk.is_empty() {
                    return Ok(None);
                }
                let missing = LENGTH_BYTES - self.begun.len();
                self.gather(missing);
                continue;
            };
            let length = u32::from_le_bytes(*length) as usize;
            if length > bytes_max {
                return Err(length);
            }
            let whole = LENGTH_BYTES + length;
            if self.begun.is_empty() && self.chunk.len() >= whole {
                let mut item = self.chunk.split_to(whole);
                item.advance(LENGTH_BYTES);
                return Ok(Some(item));
            }
            if self.begun.len() == whole {
                let mut item = self.begun.split().freeze();
                item.advance(LENGTH_BYTES);
                return Ok(Some(item));
            }
            if self.chunk.is_empty() {
                return Ok(None);
            }
            let missing = whole - self.begun.len();
            self.gather(missing);
        }
    }

    fn gather(&mut self, missing: usize) {
        let part = self.chunk.split_to(missing.min(self.chunk.len()));
        self.begun.extend_from_slice(&part);
    }
}

/// Sends items one by one to the other end of a call: a handler's answer ([`Router::watch`](crate::Router::watch)), or
/// the caller's side of an [`exchange`](crate::Transport::exchange).
///
/// The reader's window ([`Config::stream_window_bytes`](crate::Config::stream_window_bytes)) bounds what is under way
/// and unread: a sender waits for its reader.
pub struct ItemSender {
    chunks: Chunks,
    /// Whether this is the caller's side, which tells the peer how it ends.
    is_callers: bool,
    has_ended: bool,
}

impl ItemSender {
    pub(crate) fn new(chunks: Chunks, is_callers: bool) -> Self {
        Self {
            chunks,
            is_callers,
            has_ended: false,
        }
    }

    /// Sends an item, of at most [`Config::frame_bytes_max`](crate::Config::frame_bytes_max) bytes as the reader has
    /// it. Waits while the reader has a window full of unread bytes, or the queue is full. Bytes above 1 KiB are
    /// shared, not copied.
    ///
    /// Dropping the future before it is ready leaves the stream whole: an item that was begun is completed by the next
    /// one, or by [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`TransportError::BodyBroken`] if the reader wants no more or the connection was lost,
    /// [`TransportError::TooLarge`] if the item has 4 GiB or more.
    pub async fn send(&mut self, item: impl Into<Bytes>) -> Result<(), TransportError> {
        let item = item.into();
        let Ok(length) = u32::try_from(item.len()) else {
            return Err(TransportError::TooLarge {
                bytes: item.len(),
                bytes_max: u32::MAX as usize,
            });
        };
        // Parts that a dropped future has left.
        self.flush().await?;
        if item.len() <= COPIED_BYTES_MAX {
            let mut whole = BytesMut::with_capacity(LENGTH_BYTES + item.len());
            whole.extend_from_slice(&length.to_le_bytes());
            whole.extend_from_slice(&item);
            self.chunks.add(whole.freeze());
        } else {
            self.chunks
                .add(Bytes::copy_from_slice(&length.to_le_bytes()));
            self.chunks.add(item);
        }
        self.flush().await
    }

    /// Sends what a dropped future of [`send`](Self::send) has left. There is nothing to do otherwise.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn flush(&mut self) -> Result<(), TransportError> {
        self.chunks.flush().await
    }

    /// Ends the caller's side of an exchange: the handler's [`Body`](crate::Body) is complete. A handler's answer ends
    /// when the handler returns.
    ///
    /// # Errors
    /// As [`send`](Self::send). [`Answer`] says why.
    pub async fn finish(mut self) -> Result<(), TransportError> {
        self.flush().await?;
        if self.is_callers {
            self.chunks.queue(Kind::StreamEnd, Bytes::new()).await?;
        }
        self.has_ended = true;
        Ok(())
    }
}

impl Drop for ItemSender {
    fn drop(&mut self) {
        self.chunks.close();
        if self.is_callers && !self.has_ended {
            self.chunks.queue_past_limit(Kind::StreamReset);
        }
    }
}

impl fmt::Debug for ItemSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ItemSender")
            .field("peer", &self.chunks.conn.peer)
            .finish_non_exhaustive()
    }
}

/// The answer to a request, item by item, as it arrives: also a `futures` stream. Made by
/// [`Transport::watch`](crate::Transport::watch) and [`Transport::exchange`](crate::Transport::exchange).
///
/// It ends with `None` behind the last item, or with an error and then `None`: no item that was read is lost by an
/// error behind it. Unread bytes are bounded by this node's window. Dropping it cancels the request: the handler is
/// dropped at its next `await`.
#[must_use = "dropping an answer cancels the request"]
pub struct Answer {
    body: AnswerBody,
    items: ItemReader,
    call: Option<Call>,
    outcome: Option<Result<Bytes, TransportError>>,
    item_bytes_max: usize,
    has_ended: bool,
}

impl Answer {
    pub(crate) fn new(body: AnswerBody, call: Call, item_bytes_max: usize) -> Self {
        Self {
            body,
            items: ItemReader::default(),
            call: Some(call),
            outcome: None,
            item_bytes_max,
            has_ended: false,
        }
    }

    /// The next item; `None` when there are no more.
    ///
    /// # Errors
    /// What a call can fail with; [`TransportError::PeerRejected`] if the handler ended with an error;
    /// [`TransportError::BodyBroken`] if the last item is not whole.
    pub async fn next(&mut self) -> Option<Result<Bytes, TransportError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`next`](Self::next) for those who poll.
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, TransportError>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        if let Some(item) = self.poll_item(cx) {
            return Poll::Ready(Some(item));
        }
        if let Some(call) = &mut self.call {
            let Poll::Ready(outcome) = Pin::new(call).poll(cx) else {
                return Poll::Pending;
            };
            self.call = None;
            self.outcome = Some(outcome);
            // Items that arrived since `poll_item` go before the outcome.
            if let Some(item) = self.poll_item(cx) {
                return Poll::Ready(Some(item));
            }
        }
        self.has_ended = true;
        let is_cut = self.items.is_within_item();
        let peer = self.body.peer();
        Poll::Ready(match self.outcome.take() {
            Some(Err(error)) => Some(Err(error)),
            Some(Ok(_)) if is_cut => Some(Err(TransportError::BodyBroken { peer })),
            Some(Ok(_)) | None => None,
        })
    }

    /// The next item or the error that takes its place, if it is there now.
    fn poll_item(&mut self, cx: &mut Context<'_>) -> Option<Result<Bytes, TransportError>> {
        loop {
            match self.items.next(self.item_bytes_max) {
                Ok(Some(item)) => return Some(Ok(item)),
                Ok(None) => {}
                Err(bytes) => {
                    // The items behind it cannot be found.
                    self.has_ended = true;
                    self.call = None;
                    let bytes_max = self.item_bytes_max;
                    return Some(Err(TransportError::TooLarge { bytes, bytes_max }));
                }
            }
            match self.body.poll_chunk(cx) {
                Poll::Ready(Some(chunk)) => self.items.receive(chunk),
                // The call's outcome says why there are no more.
                Poll::Ready(None) | Poll::Pending => return None,
            }
        }
    }
}

impl futures_core::Stream for Answer {
    type Item = Result<Bytes, TransportError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Answer::poll_next(&mut self, cx)
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("peer", &self.body.peer())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_out_as_they_went_in_however_they_were_cut() {
        let items: Vec<Vec<u8>> = [0, 1, 3, 4, 5, 300, 0, 2]
            .iter()
            .map(|&length| vec![length as u8; length])
            .collect();
        let mut wire = Vec::new();
        for item in &items {
            wire.extend_from_slice(&(item.len() as u32).to_le_bytes());
            wire.extend_from_slice(item);
        }
        for size in 1..=wire.len() {
            let mut reader = ItemReader::default();
            let mut read = Vec::new();
            for chunk in wire.chunks(size) {
                reader.receive(Bytes::copy_from_slice(chunk));
                while let Some(item) = reader.next(300).expect("short") {
                    read.push(item.to_vec());
                }
            }
            assert_eq!(read, items, "in chunks of {size}");
            assert!(!reader.is_within_item());
        }
    }

    #[test]
    fn an_item_that_is_too_long_is_refused_by_its_length() {
        let mut reader = ItemReader::default();
        reader.receive(Bytes::copy_from_slice(&301_u32.to_le_bytes()));
        assert!(reader.is_within_item());
        assert_eq!(reader.next(300), Err(301));
    }
}
