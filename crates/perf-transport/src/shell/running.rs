//! Handlers that are stopped when nobody waits for their answer any more.

use crate::config::millis;
use crate::proto::TimeLimit;
use parking_lot::Mutex;
use std::collections::HashMap;
use tokio::task::AbortHandle;

/// The handlers of one connection that may be stopped, by the ids of their requests.
///
/// Nothing is aborted under the lock: what a task drops asks for it. Whoever takes a handler out of the map has the say about it: either it answers,
/// or it is stopped.
#[derive(Default)]
pub(crate) struct Running {
    handlers: Mutex<HashMap<u64, Handler>>,
}

struct Handler {
    /// Of its request: a peer may use an id for a second request while the first one runs.
    sequence: u64,
    /// `None` while its task is about to be spawned.
    task: Option<AbortHandle>,
    limit: TimeLimit,
    /// Set by the first tick that sees it.
    deadline_ms: Option<u64>,
}

impl Running {
    /// A handler is about to start, whose caller waits so long.
    ///
    /// A handler that runs for the same id is stopped: the peer has given its id away, so nobody waits for it.
    pub(crate) fn begin(&self, (id, sequence): (u64, u64), limit: TimeLimit) {
        let handler = Handler {
            sequence,
            task: None,
            limit,
            deadline_ms: None,
        };
        let before = self.handlers.lock().insert(id, handler);
        abort(before);
    }

    /// It has started, and may have ended.
    pub(crate) fn started(&self, (id, sequence): (u64, u64), task: AbortHandle) {
        if let Some(handler) = self.handlers.lock().get_mut(&id)
            && handler.sequence == sequence
        {
            handler.task = Some(task);
        }
    }

    /// It ends by itself. `false` if it was stopped: then nothing is answered.
    pub(crate) fn end(&self, (id, sequence): (u64, u64)) -> bool {
        let mut handlers = self.handlers.lock();
        let is_it = handlers
            .get(&id)
            .is_some_and(|handler| handler.sequence == sequence);
        if is_it {
            handlers.remove(&id);
        }
        is_it
    }

    /// Nobody waits for this one.
    pub(crate) fn stop(&self, id: u64) {
        let handler = self.handlers.lock().remove(&id);
        abort(handler);
    }

    /// Nobody waits for any of them.
    pub(crate) fn stop_all(&self) {
        let handlers = std::mem::take(&mut *self.handlers.lock());
        abort(handlers.into_values());
    }

    /// Stops those whose callers have waited as long as they wanted: their word may be stuck behind requests that are not read.
    pub(crate) fn stop_late(&self, now_ms: u64) {
        let mut handlers = self.handlers.lock();
        if handlers.is_empty() {
            return;
        }
        let late: Vec<_> = handlers
            .extract_if(|_, handler| handler.is_late(now_ms))
            .collect();
        drop(handlers);
        abort(late.into_iter().map(|(_, handler)| handler));
    }
}

impl Handler {
    fn is_late(&mut self, now_ms: u64) -> bool {
        let Some(limit) = self.limit.duration() else {
            return false;
        };
        let deadline_ms = *self
            .deadline_ms
            .get_or_insert(now_ms.saturating_add(millis(limit)));
        self.task.is_some() && deadline_ms <= now_ms
    }
}

fn abort(handlers: impl IntoIterator<Item = Handler>) {
    for handler in handlers {
        if let Some(task) = handler.task {
            task.abort();
        }
    }
}
