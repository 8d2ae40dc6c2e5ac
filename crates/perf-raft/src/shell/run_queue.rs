//! Which groups have work, for the task that drives them.

use crate::primitive::Ordering;
use crate::primitive::threads::{AtomicBool, Mutex};
use std::fmt;
use std::sync::Arc;
use tokio::sync::Notify;

/// The groups of one task that were notified and have not been driven since, by their numbers.
#[derive(Default)]
pub(crate) struct RunQueue {
    ready: Mutex<Vec<u32>>,
    wakeup: Notify,
}

impl RunQueue {
    /// Waits until a group is ready, or until [`wake`](Self::wake).
    pub(crate) async fn notified(&self) {
        self.wakeup.notified().await;
    }

    /// Wakes the task without a group.
    pub(crate) fn wake(&self) {
        self.wakeup.notify_one();
    }

    /// Swaps the groups that are ready with an empty list.
    pub(crate) fn take(&self, empty: &mut Vec<u32>) {
        std::mem::swap(&mut *self.ready.lock(), empty);
    }
}

/// One group's way into a run queue.
pub(crate) struct Notifier {
    queue: Arc<RunQueue>,
    number: u32,
    /// The group has its one place: in the queue, or in the task's own list of groups that go on.
    is_ready: AtomicBool,
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifier")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Notifier {
    pub(crate) fn new(queue: Arc<RunQueue>, number: u32) -> Self {
        Self {
            queue,
            number,
            is_ready: AtomicBool::new(false),
        }
    }

    /// Makes the group ready, after work was queued for it. A burst of calls costs one place in the queue.
    pub(crate) fn notify(&self) {
        if self.mark() {
            self.queue.ready.lock().push(self.number);
            self.queue.wakeup.notify_one();
        }
    }

    /// Returns true if the group had no place, and gets one by the caller.
    pub(crate) fn mark(&self) -> bool {
        !self.is_ready.swap(true, Ordering::AcqRel)
    }

    /// To be called before a group is driven that was taken from its place: what is queued before a [`notify`](Self::notify) that found the group ready is seen by what follows,
    /// since both change the same flag, with acquire and release.
    pub(crate) fn begin(&self) {
        self.is_ready.swap(false, Ordering::AcqRel);
    }
}
