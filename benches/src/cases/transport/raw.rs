//! Sockets without any protocol: what the system itself costs.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::mem;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use super::drive::{self, Arrivals, Caller, Sender};
use crate::case::Run;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

const MESSAGE_BYTES: usize = 64;
/// As the goal has it.
const WRITE_BYTES: usize = 256 * 1024;

/// Two blocking threads, 64 bytes to and fro.
pub(super) fn ping_pong() -> Run {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be listened on");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client connects");
        stream.set_nodelay(true).expect("TCP has it");
        let mut buffer = [0; MESSAGE_BYTES];
        while stream.read_exact(&mut buffer).is_ok() && stream.write_all(&buffer).is_ok() {}
    });
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_nodelay(true).expect("TCP has it");
    Box::new(move |iters| {
        let mut buffer = [0x5A; MESSAGE_BYTES];
        let begin = Instant::now();
        for _ in 0..iters {
            stream.write_all(&buffer).expect("the server lives");
            stream.read_exact(&mut buffer).expect("the server lives");
        }
        begin.elapsed()
    })
}

struct RawSender {
    stream: tokio::net::TcpStream,
    buffer: Vec<u8>,
}

impl Sender for RawSender {
    async fn send(&mut self, count: u64) {
        // The last write is shorter.
        let mut left = count as usize * 65_536;
        while left > 0 {
            let now = left.min(WRITE_BYTES);
            self.stream
                .write_all(&self.buffer[..now])
                .await
                .expect("the server lives");
            left -= now;
        }
    }
}

/// 64 KiB is an operation, four of them a write; the other side reads into 256 KiB and looks at nothing.
pub(super) fn bulk() -> Run {
    let runtime = drive::runtime();
    let arrivals = Arc::new(Arrivals::default());
    let counted = Arc::clone(&arrivals);
    let stream = runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("loopback can be listened on");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client connects");
            let mut buffer = vec![0; WRITE_BYTES];
            let mut bytes = 0;
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                bytes += read;
                counted.add((bytes / 65_536) as u64);
                bytes %= 65_536;
            }
        });
        let stream = tokio::net::TcpStream::connect(address).await;
        stream.expect("somebody listens")
    });
    stream.set_nodelay(true).expect("TCP has it");
    let sender = RawSender {
        stream,
        buffer: vec![0x5A; WRITE_BYTES],
    };
    drive::messages(runtime, sender, arrivals)
}

/// What waits to be written, and who waits for an answer.
#[derive(Default)]
struct Queue {
    lines: Mutex<Lines>,
    written_to: Notify,
}

#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    callers: VecDeque<Arc<Notify>>,
}

impl Queue {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct QueueCaller {
    queue: Arc<Queue>,
    answered: Arc<Notify>,
}

impl Caller for QueueCaller {
    async fn call(&mut self) {
        let was_empty = {
            let mut lines = self.queue.lines();
            let was_empty = lines.bytes.is_empty();
            lines.bytes.extend_from_slice(&[0x5A; MESSAGE_BYTES]);
            lines.callers.push_back(Arc::clone(&self.answered));
            was_empty
        };
        if was_empty {
            self.queue.written_to.notify_one();
        }
        self.answered.notified().await;
    }
}

/// Callers that put 64 bytes into a buffer and wait. A task lets others put theirs, then writes all of it; another one reads what the
/// server sends back, looks at nothing, and wakes the callers in their order. No frame, name, deadline or bound: what callers, tasks and
/// sockets take alone.
pub(super) fn queue<const CALLERS: usize>() -> Run {
    let runtime = drive::runtime();
    let queue = Arc::new(Queue::default());
    let (writers, readers) = (Arc::clone(&queue), Arc::clone(&queue));
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("loopback can be listened on");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client connects");
            stream.set_nodelay(true).expect("TCP has it");
            let mut buffer = vec![0; WRITE_BYTES];
            while let Ok(read @ 1..) = stream.read(&mut buffer).await
                && stream.write_all(&buffer[..read]).await.is_ok()
            {}
        });
        let stream = tokio::net::TcpStream::connect(address).await;
        let stream = stream.expect("somebody listens");
        stream.set_nodelay(true).expect("TCP has it");
        let (mut read_half, mut write_half) = stream.into_split();
        tokio::spawn(async move {
            let mut batch = Vec::new();
            loop {
                writers.written_to.notified().await;
                tokio::task::yield_now().await;
                mem::swap(&mut batch, &mut writers.lines().bytes);
                if write_half.write_all(&batch).await.is_err() {
                    return;
                }
                batch.clear();
            }
        });
        tokio::spawn(async move {
            let mut buffer = vec![0; WRITE_BYTES];
            let mut answered = Vec::new();
            let mut bytes = 0;
            while let Ok(read @ 1..) = read_half.read(&mut buffer).await {
                bytes += read;
                let whole = bytes / MESSAGE_BYTES;
                answered.extend(readers.lines().callers.drain(..whole));
                bytes %= MESSAGE_BYTES;
                for caller in answered.drain(..) {
                    caller.notify_one();
                }
            }
        });
    });
    let callers = (0..CALLERS)
        .map(|_| QueueCaller {
            queue: Arc::clone(&queue),
            answered: Arc::default(),
        })
        .collect();
    drive::calls(runtime, callers)
}
