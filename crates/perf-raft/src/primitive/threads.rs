//! The shell's locks, threads and tasks on shuttle's scheduler, with the signatures of the real ones. For `tests/shuttle.rs`.

pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
pub(crate) use shuttle::{thread, thread_local};

use shuttle::future::AbortHandle;
use std::convert::Infallible;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;

/// shuttle's mutex with the signature of parking_lot's.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

/// Empty only while [`Condvar::wait`] waits.
pub(crate) struct MutexGuard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let guard = self.0.lock();
        MutexGuard(Some(guard.unwrap_or_else(PoisonError::into_inner)))
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is locked")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("it is locked")
    }
}

/// shuttle's condition variable with the signature of parking_lot's.
#[derive(Debug, Default)]
pub(crate) struct Condvar(shuttle::sync::Condvar);

impl Condvar {
    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let inner = guard.0.take().expect("it is locked");
        let inner = self.0.wait(inner);
        guard.0 = Some(inner.unwrap_or_else(PoisonError::into_inner));
    }
}

shuttle::lazy_static! {
    /// The tasks of this run of a model, for [`end_runtime`]. Of other runs it must know none: to abort a task takes a turn of the scheduler.
    static ref TASKS: Mutex<Vec<AbortHandle>> = Mutex::new(Vec::new());
}

/// Runs on a task of shuttle, until it ends.
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    let handle = shuttle::future::spawn(task).abort_handle();
    TASKS.lock().push(handle);
}

/// Drops all tasks, as a runtime does that ends.
pub(crate) fn end_runtime() {
    let tasks = std::mem::take(&mut *TASKS.lock());
    for task in tasks {
        task.abort();
    }
}

/// Runs at once.
pub(crate) async fn spawn_blocking<R>(work: impl FnOnce() -> R) -> Result<R, Infallible> {
    Ok(work())
}
