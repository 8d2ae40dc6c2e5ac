//! Running handlers of one connection that are stopped when their caller has given up.

use crate::config::millis;
use crate::primitive::mutant;
use crate::proto::TimeLimit;
use parking_lot::Mutex;
use std::collections::HashMap;
use tokio::task::AbortHandle;

/// The handlers of one connection that may be stopped, by the ids of their requests.
///
/// Removing a handler from the map decides its end: its task removes it and answers, or [`stop`](Self::stop) removes it
/// and aborts the task. Tasks are aborted after the lock is released, because dropping a task takes the lock again.
#[derive(Default)]
pub(crate) struct Running {
    handlers: Mutex<HashMap<u64, Handler>>,
}

struct Handler {
    /// The sequence of the request. A peer may use an id for a second request while the first one runs.
    sequence: u64,
    /// `None` until the task is spawned.
    task: Option<AbortHandle>,
    limit: TimeLimit,
    /// Set by the first tick that sees the handler.
    deadline_ms: Option<u64>,
}

impl Running {
    /// Registers a handler before its task is spawned. `limit` is how long its caller waits.
    ///
    /// A handler that runs for the same id is stopped: the peer has given the id to another request.
    pub(crate) fn begin(&self, (id, sequence): (u64, u64), limit: TimeLimit) {
        let handler = Handler {
            sequence,
            task: None,
            limit,
            deadline_ms: None,
        };
        let before = self.handlers.lock().insert(id, handler);
        abort(before.filter(|_| !mutant::is("id_used_twice_runs_on")));
    }

    /// Notes the task of a handler, which may have ended already.
    pub(crate) fn started(&self, (id, sequence): (u64, u64), task: AbortHandle) {
        if let Some(handler) = self.handlers.lock().get_mut(&id)
            && handler.sequence == sequence
        {
            handler.task = Some(task);
        }
    }

    /// Removes a handler that has ended by itself. Returns `false` if it was stopped before; its answer is dropped
    /// then.
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

    /// Stops the handler of this request, if it runs.
    pub(crate) fn stop(&self, id: u64) {
        let handler = self.handlers.lock().remove(&id);
        abort(handler);
    }

    /// Stops all handlers: the connection has ended.
    pub(crate) fn stop_all(&self) {
        let handlers = std::mem::take(&mut *self.handlers.lock());
        abort(handlers.into_values());
    }

    /// Stops the handlers whose time limit has passed. The caller's cancellation may be stuck behind requests that are
    /// not read yet.
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
