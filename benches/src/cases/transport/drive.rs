//! Runs calls and messages of any transport, and the time around them.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, watch};

use crate::case::Run;

/// Two workers: one for each core of the machine the goals are stated for.
pub(super) const WORKERS: u32 = 2;

pub(super) fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(WORKERS as usize)
        .enable_all()
        .build()
        .expect("the system gives two threads")
}

/// Who calls, and waits for the reply.
pub(super) trait Caller: Send + 'static {
    fn call(&mut self) -> impl Future<Output = ()> + Send;
}

/// Makes a path of one caller or several. They share the calls evenly.
pub(super) fn calls<C: Caller>(runtime: Runtime, callers: Vec<C>) -> Run {
    let count = callers.len() as u64;
    let start = watch::Sender::new(0_u64);
    let left = Arc::new(AtomicU64::new(0));
    let done = Arc::new(Notify::new());
    for (number, mut caller) in (0_u64..).zip(callers) {
        let (mut start, left, done) = (start.subscribe(), Arc::clone(&left), Arc::clone(&done));
        runtime.spawn(async move {
            while start.changed().await.is_ok() {
                let iters = *start.borrow_and_update();
                let mine = iters / count + u64::from(number < iters % count);
                for _ in 0..mine {
                    caller.call().await;
                }
                if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                    done.notify_one();
                }
            }
        });
    }
    Box::new(move |iters| {
        left.store(count, Ordering::Release);
        let begin = Instant::now();
        start.send_replace(iters);
        runtime.block_on(done.notified());
        begin.elapsed()
    })
}

/// Who sends messages, and learns when the last one has arrived.
pub(super) trait Sender: Send + 'static {
    /// Sends `count` messages.
    fn send(&mut self, count: u64) -> impl Future<Output = ()> + Send;
}

/// How many messages have arrived, and who wants to know.
#[derive(Debug)]
pub(super) struct Arrivals {
    count: AtomicU64,
    wanted: AtomicU64,
    reached: Notify,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            count: AtomicU64::new(0),
            wanted: AtomicU64::new(u64::MAX),
            reached: Notify::new(),
        }
    }
}

impl Arrivals {
    /// Some have arrived. A locked operation here would be a third of what a message of 64 bytes costs.
    pub(super) fn add(&self, count: u64) {
        // One receiver counts, so load and store do.
        let now = self.count.load(Ordering::Relaxed) + count;
        self.count.store(now, Ordering::Release);
        // Said before the first of these messages was sent, so it is seen when the last has arrived.
        if now >= self.wanted.load(Ordering::Relaxed) {
            self.reached.notify_one();
        }
    }

    /// How many so far.
    #[cfg(feature = "peers")]
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Counts from 0 again; nothing may be on its way.
    #[cfg(feature = "peers")]
    pub(super) fn reset(&self) {
        self.count.store(0, Ordering::Release);
    }

    /// Says how many there will be, before those that are missing are sent.
    fn expect(&self, wanted: u64) {
        self.wanted.store(wanted, Ordering::Release);
    }

    async fn all(&self) {
        let wanted = self.wanted.load(Ordering::Relaxed);
        while self.count.load(Ordering::Acquire) < wanted {
            self.reached.notified().await;
        }
    }
}

/// Makes a path of one sender; its time ends when the last message has arrived.
pub(super) fn messages(runtime: Runtime, mut sender: impl Sender, arrivals: Arc<Arrivals>) -> Run {
    let start = watch::Sender::new(0_u64);
    let done = Arc::new(Notify::new());
    let (mut begun, finished) = (start.subscribe(), Arc::clone(&done));
    runtime.spawn(async move {
        let mut sent = 0;
        while begun.changed().await.is_ok() {
            let count = *begun.borrow_and_update();
            sent += count;
            arrivals.expect(sent);
            sender.send(count).await;
            arrivals.all().await;
            finished.notify_one();
        }
    });
    Box::new(move |iters| {
        let begin = Instant::now();
        start.send_replace(iters);
        runtime.block_on(done.notified());
        begin.elapsed()
    })
}
