//! Flow control of bodies: the sender's credit, and the chunks that wait for the reader.

use super::frame::FrameError;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::mem;
use std::task::{Context, Poll, Waker};

/// Chunks shorter than this are gathered while they wait for the reader.
const SMALL_BYTES: usize = 16 * 1024;
/// Gathered chunks become a piece at this size, exceeded by one small chunk at most.
const GATHERED_BYTES_MAX: usize = 48 * 1024;

/// The credit of the sender of a body.
#[derive(Debug)]
pub struct SendWindow {
    state: Mutex<SendState>,
}

#[derive(Debug)]
struct SendState {
    credit: u64,
    closed: bool,
    waker: Option<Waker>,
}

impl SendWindow {
    /// A window with this credit.
    #[must_use]
    pub fn new(credit: u64) -> Self {
        Self {
            state: Mutex::new(SendState {
                credit,
                closed: false,
                waker: None,
            }),
        }
    }

    /// Takes up to `wanted` bytes of credit, at least one. Pending while there is none, `None` once the window is
    /// closed.
    pub fn poll_take(&self, wanted: u64, cx: &mut Context<'_>) -> Poll<Option<u64>> {
        let mut state = self.state.lock();
        if state.closed {
            return Poll::Ready(None);
        }
        let taken = state.credit.min(wanted);
        if taken == 0 && wanted > 0 {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.credit -= taken;
        Poll::Ready(Some(taken))
    }

    /// Adds credit that the reader has granted.
    pub fn grant(&self, bytes: u64) {
        let waker = {
            let mut state = self.state.lock();
            state.credit = state.credit.saturating_add(bytes);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ready once the window is closed.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.closed {
            return Poll::Ready(());
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Whether the reader has given up, or the connection is lost.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Closes the window: the reader has given up, or the connection is lost.
    pub fn close(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.closed = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// How a body ended for its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Complete,
    Broken,
}

/// A body that is arriving: its unread chunks, within the window.
#[derive(Debug)]
pub struct BodyState {
    state: Mutex<ReceiveState>,
    window_bytes: u64,
}

#[derive(Debug)]
struct ReceiveState {
    chunks: VecDeque<Bytes>,
    /// Small chunks behind the others, gathered: the memory of a chunk of a few bytes is much more than its bytes.
    small: BytesMut,
    buffered: u64,
    /// Bytes that the sender may still send.
    open: u64,
    /// Bytes that were read and not yet granted again.
    consumed: u64,
    end: Option<End>,
    /// Of a complete body: bytes that were read or given up since the last [`BodyState::take_released`].
    released: u64,
    waker: Option<Waker>,
}

impl ReceiveState {
    fn keep(&mut self, chunk: Bytes) {
        let is_small = chunk.len() < SMALL_BYTES;
        // The first chunk is often read at once: a copy would gain nothing.
        let is_first = self.chunks.is_empty() && self.small.is_empty();
        if is_small && !is_first {
            self.small.extend_from_slice(&chunk);
        }
        if !self.small.is_empty() && (!is_small || self.small.len() >= GATHERED_BYTES_MAX) {
            let gathered = self.small.split().freeze();
            self.chunks.push_back(gathered);
        }
        if !is_small || is_first {
            self.chunks.push_back(chunk);
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let next = self.chunks.pop_front();
        next.or_else(|| (!self.small.is_empty()).then(|| mem::take(&mut self.small).freeze()))
    }
}

/// The next step of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyStep {
    /// A chunk, and the credit to grant to the sender. 0 stands for none now.
    Chunk(Bytes, u32),
    /// The end of a complete body.
    Complete,
    /// The end of a body that was broken off.
    Broken,
}

impl BodyState {
    /// An empty body with a window of `window_bytes`.
    #[must_use]
    pub fn new(window_bytes: u32) -> Self {
        Self {
            state: Mutex::new(ReceiveState {
                chunks: VecDeque::new(),
                small: BytesMut::new(),
                buffered: 0,
                open: window_bytes.into(),
                consumed: 0,
                end: None,
                released: 0,
                waker: None,
            }),
            window_bytes: window_bytes.into(),
        }
    }

    /// Takes a chunk that has arrived.
    ///
    /// # Errors
    /// [`FrameError::BudgetExceeded`] if the sender had no credit for it.
    pub fn receive(&self, chunk: Bytes) -> Result<(), FrameError> {
        let waker = {
            let mut state = self.state.lock();
            let length = chunk.len() as u64;
            if length > state.open {
                return Err(FrameError::BudgetExceeded {
                    bytes_max: self.window_bytes,
                });
            }
            state.open -= length;
            if state.end.is_some() || length == 0 {
                return Ok(());
            }
            state.buffered += length;
            state.keep(chunk);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Ends the body: it is `complete`, or broken off. The first end counts.
    pub fn end(&self, complete: bool) {
        self.end_with(if complete { End::Complete } else { End::Broken });
    }

    /// Ends a complete body, see [`end`](Self::end). Returns its unread bytes. The sender may begin another body now,
    /// so no window bounds them; they are given back by [`take_released`](Self::take_released).
    pub fn complete(&self) -> usize {
        let unread = self.end_with(End::Complete);
        usize::try_from(unread).unwrap_or(usize::MAX)
    }

    /// Returns the unread bytes if this is the first end, and 0 otherwise.
    fn end_with(&self, end: End) -> u64 {
        let (unread, waker) = {
            let mut state = self.state.lock();
            let is_first = state.end.is_none();
            let first = *state.end.get_or_insert(end);
            if end == End::Broken {
                if first == End::Complete {
                    state.released += state.buffered;
                }
                state.chunks.clear();
                state.small = BytesMut::new();
                state.buffered = 0;
            }
            let unread = if is_first { state.buffered } else { 0 };
            (unread, state.waker.take())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        unread
    }

    /// Bytes of a complete body that were read or given up since the last call. 0 while the body is open.
    pub fn take_released(&self) -> usize {
        let released = mem::take(&mut self.state.lock().released);
        usize::try_from(released).unwrap_or(usize::MAX)
    }

    /// Unread bytes.
    #[must_use]
    pub fn buffered(&self) -> u64 {
        self.state.lock().buffered
    }

    /// The next step. Credit is granted by halves of the window, so that grants are rare beside chunks.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<BodyStep> {
        let mut state = self.state.lock();
        if let Some(chunk) = state.take() {
            let length = chunk.len() as u64;
            state.buffered -= length;
            state.consumed += length;
            if state.end == Some(End::Complete) {
                state.released += length;
            }
            let mut grant = 0;
            if state.consumed >= self.window_bytes.div_ceil(2) && state.end.is_none() {
                grant = state.consumed;
                state.open += grant;
                state.consumed = 0;
            }
            let grant = u32::try_from(grant).unwrap_or(u32::MAX);
            return Poll::Ready(BodyStep::Chunk(chunk, grant));
        }
        match state.end {
            Some(End::Complete) => Poll::Ready(BodyStep::Complete),
            Some(End::Broken) => Poll::Ready(BodyStep::Broken),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(body: &BodyState) -> Poll<BodyStep> {
        body.poll_next(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_body_is_read_in_order_and_credit_comes_back_by_halves() {
        let body = BodyState::new(100);
        assert!(next(&body).is_pending());
        for byte in 0..4 {
            body.receive(Bytes::from(vec![byte; 25])).expect("within");
        }
        assert!(body.receive(Bytes::from_static(b"x")).is_err());
        // The first stands for itself, and the small ones behind it are put together.
        let mut read = Vec::new();
        let mut grants = Vec::new();
        for _ in 0..2 {
            let Poll::Ready(BodyStep::Chunk(chunk, grant)) = next(&body) else {
                panic!("there is a chunk");
            };
            read.extend_from_slice(&chunk);
            grants.push(grant);
        }
        assert_eq!(read, [[0; 25], [1; 25], [2; 25], [3; 25]].concat());
        assert_eq!(grants, [0, 100]);
        body.end(true);
        body.end(false);
        assert_eq!(next(&body), Poll::Ready(BodyStep::Complete));
    }

    #[test]
    fn chunks_of_all_sizes_are_read_as_they_were_sent() {
        let body = BodyState::new(1 << 20);
        let (mut sent, mut read) = (Vec::new(), Vec::new());
        let lengths = [
            1, 1, 20_000, 3, 15_000, 16_000, 17_000, 16_383, 16_384, 1, 90_000, 7,
        ];
        for (number, length) in lengths.into_iter().enumerate() {
            let chunk = vec![number as u8; length];
            sent.extend_from_slice(&chunk);
            body.receive(chunk.into()).expect("within");
            // It is read slowly at first.
            if number % 3 == 2 {
                let Poll::Ready(BodyStep::Chunk(chunk, _)) = next(&body) else {
                    panic!("there is a chunk");
                };
                read.extend_from_slice(&chunk);
            }
        }
        while let Poll::Ready(BodyStep::Chunk(chunk, _)) = next(&body) {
            read.extend_from_slice(&chunk);
        }
        assert!(read == sent);
        assert_eq!(body.buffered(), 0);
    }

    #[test]
    fn a_broken_body_never_ends_as_complete() {
        let body = BodyState::new(100);
        body.receive(Bytes::from_static(b"begun")).expect("within");
        body.end(false);
        body.end(true);
        assert_eq!(next(&body), Poll::Ready(BodyStep::Broken));
    }

    #[test]
    fn a_window_limits_the_sender_until_it_is_granted_more() {
        let window = SendWindow::new(10);
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(window.poll_take(7, &mut cx), Poll::Ready(Some(7)));
        assert_eq!(window.poll_take(7, &mut cx), Poll::Ready(Some(3)));
        assert!(window.poll_take(7, &mut cx).is_pending());
        window.grant(5);
        assert_eq!(window.poll_take(7, &mut cx), Poll::Ready(Some(5)));
        window.close();
        assert_eq!(window.poll_take(7, &mut cx), Poll::Ready(None));
    }
}
