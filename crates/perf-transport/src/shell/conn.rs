//! The hot path: what callers, handlers and the task of one connection share, and how bytes get to the socket.

use super::running::Running;
use crate::connect::BoxWrite;
use crate::error::TransportError;
use crate::event::CloseReason;
use crate::proto::{CallKey, Channel, ConnectionClass, Fault, Notified, SLICES_MAX, Transmit};
use parking_lot::Mutex;
use std::io::{self, IoSlice};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
#[cfg(feature = "tls")]
use std::time::Duration;
use tokio::io::AsyncWrite;

/// With more than so many calls in flight, others are likely to follow at once: callers leave the writing to the task,
/// which lets others go first. Measured: 25 to 126 frames per write instead of one, and the latency of a few callers is
/// not touched.
pub(crate) const DIRECT_CALLS_MAX: usize = 3;
/// A caller that writes for others stops after so many writes and leaves the rest to the task.
const CALLER_WRITES_MAX: usize = 4;
/// The task writes so often before it looks for something to read.
const TASK_WRITES_MAX: usize = 16;

/// The write half of a connected stream.
pub(crate) struct Wire {
    io: BoxWrite,
    transmit: Transmit,
    /// Wakes the connection's task when the stream can be written to.
    waker: Waker,
    /// Something may be in the stream's own buffer (TLS).
    unflushed: bool,
}

/// Who is at the other end of a connection.
#[derive(Debug)]
pub(crate) struct Info {
    /// Where it is, as the listener put it or as it was dialled.
    pub(crate) address: String,
    pub(crate) class: ConnectionClass,
    /// Of its process.
    pub(crate) incarnation: u64,
    #[cfg(feature = "tls")]
    pub(crate) certificate: Option<crate::tls::PeerCertificate>,
    /// This node's identity that the certificate was held against, see `Inner::identity_era`.
    #[cfg(feature = "tls")]
    pub(crate) identity_era: u64,
}

#[cfg(feature = "tls")]
impl Info {
    /// When the peer's certificate expires, since 1970.
    pub(crate) fn expires_at(&self) -> Option<Duration> {
        self.certificate.as_ref()?.expires_at()
    }
}

/// How far writing got.
enum Progress {
    /// Everything is written.
    Done,
    /// The stream takes no more; the task will be woken.
    Blocked,
    /// Enough for now.
    More,
}

/// One connection as its users see it. On the dialling side it outlives reconnects.
pub(crate) struct Conn {
    pub(crate) peer: u64,
    pub(crate) channel: Channel,
    /// The longest payload that the peer takes, as far as is known.
    pub(crate) frame_bytes_max: AtomicU32,
    wire: Mutex<Option<Wire>>,
    /// The write half of a stream that has ended in good order, and whether it ended between two frames.
    parting: Mutex<Option<(BoxWrite, bool)>>,
    /// The peer knows what a good-bye of this side is.
    pub(crate) hears_goodbye: AtomicBool,
    /// The peer knows trace contexts, as far as is known.
    pub(crate) hears_traces: AtomicBool,
    /// Of the connection there is, or was last.
    pub(crate) info: Mutex<Option<Info>>,
    /// Why the last attempt to dial failed that did.
    pub(crate) last_error: Mutex<Option<Arc<TransportError>>>,
    /// The last attempt to dial failed.
    pub(crate) has_failed: AtomicBool,
    /// Why the last connection ended.
    pub(crate) last_close: Mutex<Option<Arc<CloseReason>>>,
    task: Mutex<Option<Waker>>,
    is_closing: AtomicBool,
    closing: Mutex<Option<CloseReason>>,
    /// The task does not read until there is less to write or to handle.
    pub(crate) paused: AtomicBool,
    /// Handlers that run, and those of them that read a body or answer in chunks.
    pub(crate) handlers: AtomicUsize,
    pub(crate) streams: AtomicUsize,
    /// Bytes of the handlers' requests, and of complete bodies that they have not read yet.
    pub(crate) handler_bytes: AtomicUsize,
    /// Requests wait for handlers of their method to end: each that ends wakes the task.
    pub(crate) has_held: AtomicBool,
    /// The handlers that are stopped when their callers have given up.
    pub(crate) running: Running,
    /// What this connection has done since it began. Each has one writer at a time, so plain stores do.
    pub(crate) frames_received: AtomicU64,
    pub(crate) peer_busy: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) unwritten: AtomicUsize,
    #[cfg(feature = "metrics")]
    pub(crate) recorded: Mutex<crate::metrics::Recorded>,
}

/// Adds to a counter that only one thread writes at a time.
#[inline]
pub(crate) fn bump(counter: &AtomicU64, by: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Relaxed,
    );
}

impl Conn {
    pub(crate) fn new(peer: u64, channel: Channel) -> Self {
        Self {
            peer,
            channel,
            frame_bytes_max: AtomicU32::new(u32::MAX),
            wire: Mutex::new(None),
            parting: Mutex::new(None),
            hears_goodbye: AtomicBool::new(true),
            hears_traces: AtomicBool::new(true),
            info: Mutex::new(None),
            last_error: Mutex::new(None),
            has_failed: AtomicBool::new(false),
            last_close: Mutex::new(None),
            task: Mutex::new(None),
            is_closing: AtomicBool::new(false),
            closing: Mutex::new(None),
            paused: AtomicBool::new(false),
            handlers: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            handler_bytes: AtomicUsize::new(0),
            has_held: AtomicBool::new(false),
            running: Running::default(),
            frames_received: AtomicU64::new(0),
            peer_busy: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            unwritten: AtomicUsize::new(0),
            #[cfg(feature = "metrics")]
            recorded: Mutex::default(),
        }
    }

    /// Has queued frames written. With `direct` this thread writes them now, if there is no other owner of the write
    /// side.
    #[inline]
    pub(crate) fn notify(&self, direct: bool) {
        if self.channel.ownership.notify() == Notified::Claimed {
            if direct {
                self.drive(CALLER_WRITES_MAX);
            } else {
                self.hand_over();
            }
        }
    }

    /// Ends a call whose caller has given up.
    #[inline]
    pub(crate) fn cancel(&self, key: CallKey) {
        if self.channel.cancel(key) {
            self.notify(false);
        }
    }

    fn hand_over(&self) {
        self.channel.ownership.hand_to_task();
        self.wake_task();
    }

    pub(crate) fn wake_task(&self) {
        let waker = self.task.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Writes what is queued. Only the owner of the write side may. Afterwards there is no owner, or the task is.
    fn drive(&self, writes_max: usize) {
        loop {
            self.channel.ownership.begin();
            match self.write(writes_max) {
                Progress::Done => {
                    if self.channel.ownership.finish() {
                        break;
                    }
                }
                Progress::Blocked | Progress::More => {
                    // Woken in any case: the stream may have become writable before the task was the owner.
                    self.hand_over();
                    return;
                }
            }
        }
        self.resume_reading();
    }

    /// The task's turn to write. `true` if it must be polled again at once.
    fn drive_as_task(&self) -> bool {
        loop {
            self.channel.ownership.begin();
            match self.write(TASK_WRITES_MAX) {
                Progress::Done => {
                    if self.channel.ownership.finish() {
                        return false;
                    }
                }
                Progress::Blocked => return false,
                Progress::More => return true,
            }
        }
    }

    /// Called by the task when it is polled: writes if that is its job.
    #[inline]
    pub(crate) fn poll_write(&self, cx: &Context<'_>) {
        if self.channel.ownership.is_tasks() && self.drive_as_task() {
            cx.waker().wake_by_ref();
        }
    }

    /// Writes from within the task, if there is no other owner of the write side.
    #[inline]
    pub(crate) fn notify_from_task(&self, cx: &Context<'_>) {
        match self.channel.ownership.notify() {
            Notified::Claimed => {
                self.channel.ownership.hand_to_task();
                self.poll_write(cx);
            }
            Notified::Noted => {}
        }
    }

    /// Writes what is queued, a bounded number of times. A stream that fails ends its connection.
    fn write(&self, writes_max: usize) -> Progress {
        let mut guard = self.wire.lock();
        let Some(wire) = guard.as_mut() else {
            // Not connected: what is queued waits for the next connection, which begins by writing.
            return Progress::Done;
        };
        match self.write_to(wire, writes_max) {
            Ok(progress) => progress,
            Err(error) => {
                // Under the lock, which the end of this connection takes, too: so the reason is never noted for a later
                // connection.
                self.close(CloseReason::Io(error.to_string()));
                let failed = guard.take();
                self.unwritten.store(0, Ordering::Relaxed);
                drop(guard);
                drop(failed);
                Progress::Done
            }
        }
    }

    fn write_to(&self, wire: &mut Wire, writes_max: usize) -> io::Result<Progress> {
        let mut writes = 0;
        loop {
            // What is about to be taken counts already; the lock of the queues publishes it.
            let known = wire.transmit.bytes().max(1);
            self.unwritten.store(known, Ordering::Relaxed);
            for waker in wire
                .transmit
                .fill(&self.channel.queues)
                .into_iter()
                .flatten()
            {
                waker.wake();
            }
            if wire.transmit.is_empty() {
                self.unwritten.store(0, Ordering::Relaxed);
                return wire.flush();
            }
            if writes == writes_max {
                self.unwritten
                    .store(wire.transmit.bytes(), Ordering::Relaxed);
                return Ok(Progress::More);
            }
            writes += 1;
            match wire.write_once() {
                Poll::Ready(Ok(written)) => {
                    bump(&self.bytes_written, written as u64);
                    bump(&self.writes, 1);
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.unwritten
                        .store(wire.transmit.bytes(), Ordering::Relaxed);
                    return Ok(Progress::Blocked);
                }
            }
        }
    }

    /// Begins to write to a stream. The task calls this when it is first polled, then
    /// [`notify_from_task`](Self::notify_from_task).
    pub(crate) fn connect(&self, io: BoxWrite, outbox_bytes: usize, waker: &Waker) {
        *self.task.lock() = Some(waker.clone());
        *self.wire.lock() = Some(Wire {
            io,
            transmit: Transmit::new(outbox_bytes),
            waker: waker.clone(),
            unflushed: false,
        });
    }

    /// Keeps the wakers right if the task should ever be polled with another one.
    #[inline]
    pub(crate) fn keep_waker(&self, waker: &Waker) {
        let mut task = self.task.lock();
        if !task.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *task = Some(waker.clone());
            drop(task);
            if let Some(wire) = self.wire.lock().as_mut() {
                wire.waker = waker.clone();
            }
        }
    }

    pub(crate) fn drop_wire(&self) {
        let wire = self.wire.lock().take();
        drop(wire);
        self.unwritten.store(0, Ordering::Relaxed);
    }

    /// Nothing more is written to the stream but a good-bye.
    pub(crate) fn begin_parting(&self) {
        let wire = self.wire.lock().take();
        self.unwritten.store(0, Ordering::Relaxed);
        if let Some(Wire { io, transmit, .. }) = wire {
            *self.parting.lock() = Some((io, transmit.is_empty()));
        }
    }

    /// The write half, for the last words, and whether it is between two frames.
    pub(crate) fn take_write(&self) -> Option<(BoxWrite, bool)> {
        self.begin_parting();
        self.parting.lock().take()
    }

    /// A call has failed.
    #[cold]
    pub(crate) fn error(&self, fault: Fault) -> TransportError {
        let ended = || self.last_close.lock().clone();
        TransportError::from_fault(fault, self.peer, ended, || self.dial_error())
    }

    /// Why the last attempt to dial failed; `None` if it did not.
    pub(crate) fn dial_error(&self) -> Option<Arc<TransportError>> {
        let has_failed = self.has_failed.load(Ordering::Acquire);
        has_failed.then(|| self.last_error.lock().clone()).flatten()
    }

    /// An attempt to dial has failed.
    pub(crate) fn note_dial_error(&self, error: TransportError) {
        *self.last_error.lock() = Some(Arc::new(error));
        self.has_failed.store(true, Ordering::Release);
    }

    /// The task has ended: forgets the stream. What is queued stays.
    pub(crate) fn detach(&self) {
        *self.task.lock() = None;
        self.drop_wire();
        // Left there by a task that ended before its last words.
        drop(self.parting.lock().take());
        self.paused.store(false, Ordering::Relaxed);
    }

    /// The task has ended: forgets the stream and everything queued for it.
    pub(crate) fn disconnect(&self, fault: &Fault) {
        self.detach();
        for waker in self.channel.lost(fault) {
            waker.wake();
        }
    }

    /// Another stream will follow: what ended the last one is forgotten.
    pub(crate) fn reopen(&self) {
        *self.closing.lock() = None;
        self.is_closing.store(false, Ordering::Release);
    }

    /// Ends the connection; the first reason counts.
    pub(crate) fn close(&self, reason: CloseReason) {
        self.closing.lock().get_or_insert(reason);
        self.is_closing.store(true, Ordering::Release);
        self.wake_task();
    }

    #[inline]
    pub(crate) fn closing(&self) -> Option<CloseReason> {
        if self.is_closing.load(Ordering::Acquire) {
            return self.closing.lock().clone();
        }
        None
    }

    /// Whether no handler runs.
    pub(crate) fn is_handled(&self) -> bool {
        self.handlers.load(Ordering::SeqCst) == 0
    }

    /// Bytes that wait to be written, taken ones included. Not 0 while there are any.
    pub(crate) fn backlog(&self) -> usize {
        // Read in the order in which bytes move: the writer adds to `unwritten` before it takes bytes from the queues.
        let queued = self.channel.queues.queued().0;
        queued + self.unwritten.load(Ordering::Relaxed)
    }

    /// A handler has ended: its method, or the connection, may go on.
    pub(crate) fn handler_ended(&self) {
        self.resume_reading();
        if self.has_held.load(Ordering::SeqCst) {
            self.wake_task();
        }
    }

    /// Wakes the task if it has stopped reading.
    #[inline]
    pub(crate) fn resume_reading(&self) {
        if self.paused.load(Ordering::SeqCst) && self.paused.swap(false, Ordering::SeqCst) {
            self.wake_task();
        }
    }
}

/// A stream that panics has failed: the caller that happened to write goes on.
#[inline]
fn guarded<T>(write: impl FnOnce() -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
    catch_unwind(AssertUnwindSafe(write))
        .unwrap_or_else(|_| Poll::Ready(Err(io::Error::other("the stream panicked"))))
}

impl Wire {
    #[inline]
    fn write_once(&mut self) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = self.transmit.slices(&mut slices);
        let mut cx = Context::from_waker(&self.waker);
        let io = Pin::new(&mut self.io);
        let written = guarded(|| match &slices[..count] {
            [one] => io.poll_write(&mut cx, one),
            many => io.poll_write_vectored(&mut cx, many),
        });
        match written {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(written)) => {
                self.transmit.advance(written);
                self.unflushed = true;
                Poll::Ready(Ok(written))
            }
            other => other,
        }
    }

    /// Brings what the stream itself has buffered on its way. Nothing for TCP.
    #[inline]
    fn flush(&mut self) -> io::Result<Progress> {
        if !self.unflushed {
            return Ok(Progress::Done);
        }
        let mut cx = Context::from_waker(&self.waker);
        match guarded(|| Pin::new(&mut self.io).poll_flush(&mut cx)) {
            Poll::Ready(Ok(())) => {
                self.unflushed = false;
                Ok(Progress::Done)
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(Progress::Blocked),
        }
    }
}

#[cfg(all(test, not(perf_loom)))]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::payload::Payload;
    use crate::proto::{Header, Kind, SendQueue};
    use std::sync::Weak;

    /// A stream that notes the connection's backlog whenever it is written to, and takes ten bytes at a time.
    struct Watching {
        conn: Weak<Conn>,
        seen: Arc<Mutex<Vec<usize>>>,
    }

    impl AsyncWrite for Watching {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let conn = self.conn.upgrade().expect("it writes");
            self.seen.lock().push(conn.backlog());
            Poll::Ready(Ok(bytes.len().min(10)))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A stream that fails. Before its end is noted the connection has ended, and another one has begun.
    struct Failing(Weak<Conn>);

    impl AsyncWrite for Failing {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Drop for Failing {
        fn drop(&mut self) {
            let conn = self.0.upgrade().expect("it writes");
            assert!(matches!(conn.closing(), Some(CloseReason::Io(_))));
            conn.detach();
            conn.reopen();
            conn.connect(Box::new(tokio::io::sink()), 1 << 16, Waker::noop());
        }
    }

    #[test]
    fn what_ends_a_connection_does_not_end_the_next_one() {
        let limits = Config::default().channel(ConnectionClass::Bulk, false);
        let conn = Arc::new(Conn::new(2, Channel::new(limits)));
        conn.connect(
            Box::new(Failing(Arc::downgrade(&conn))),
            1 << 16,
            Waker::noop(),
        );
        let header = Header::new(Kind::OneWay, 0, 0);
        let payload = Payload::Borrowed(b"x");
        let queues = &conn.channel.queues;
        for _ in 0..2 {
            let pushed = queues.push(SendQueue::First, header, &payload, None);
            assert_eq!(pushed, Ok(()));
            conn.notify(true);
        }
        assert_eq!(conn.closing(), None);
        assert!(conn.wire.lock().is_some() && conn.backlog() == 0);
    }

    #[test]
    fn there_is_a_backlog_until_the_last_byte_is_written() {
        let limits = Config::default().channel(ConnectionClass::Bulk, false);
        let conn = Arc::new(Conn::new(2, Channel::new(limits)));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let io = Watching {
            conn: Arc::downgrade(&conn),
            seen: Arc::clone(&seen),
        };
        conn.connect(Box::new(io), 1 << 16, Waker::noop());
        let header = Header::new(Kind::OneWay, 0, 0);
        let queues = &conn.channel.queues;
        let pushed = queues.push(SendQueue::First, header, &Payload::Borrowed(&[7; 14]), None);
        assert_eq!(pushed, Ok(()));
        assert_eq!(conn.backlog(), 30);
        conn.notify(true);
        // The first write has taken all of it from the queue.
        assert_eq!(seen.lock().len(), 3);
        assert!(seen.lock().iter().all(|&backlog| backlog > 0), "{seen:?}");
        assert_eq!(conn.backlog(), 0);
    }
}
