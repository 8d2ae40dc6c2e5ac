//! The concurrency primitives of the protocols that loom checks: std and crossbeam normally,
//! loom under `--cfg perf_loom`.
//!
//! What no model covers (statistics, process-wide registers) takes its types from [`cold`], which
//! is std in every build, because loom's types can neither live in a `static` nor outlive a model.

pub(crate) mod cold {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    pub(crate) use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

    /// Locks, and goes on after a panic elsewhere: every critical section here leaves its data
    /// consistent at each step.
    pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(not(perf_loom))]
mod imp {
    pub(crate) use crossbeam_queue::{ArrayQueue as Queue, SegQueue as GrowingQueue};
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
}

#[cfg(perf_loom)]
mod imp {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
    use std::collections::VecDeque;

    /// Stands in for crossbeam's queue, which loom cannot see into: same promises, under a lock.
    #[derive(Debug)]
    pub(crate) struct Queue<T> {
        items: loom::sync::Mutex<VecDeque<T>>,
        capacity: usize,
    }

    impl<T> Queue<T> {
        pub(crate) fn new(capacity: usize) -> Self {
            Self {
                items: loom::sync::Mutex::new(VecDeque::new()),
                capacity,
            }
        }

        pub(crate) fn push(&self, item: T) -> Result<(), T> {
            let mut items = self.items.lock().expect("no model panics under this lock");
            if items.len() == self.capacity {
                return Err(item);
            }
            items.push_back(item);
            Ok(())
        }

        pub(crate) fn pop(&self) -> Option<T> {
            let mut items = self.items.lock().expect("no model panics under this lock");
            items.pop_front()
        }

        pub(crate) fn len(&self) -> usize {
            self.items
                .lock()
                .expect("no model panics under this lock")
                .len()
        }
    }

    /// Stands in for crossbeam's queue without a bound.
    #[derive(Debug)]
    pub(crate) struct GrowingQueue<T>(Queue<T>);

    impl<T> GrowingQueue<T> {
        pub(crate) fn new() -> Self {
            Self(Queue::new(usize::MAX))
        }

        pub(crate) fn push(&self, item: T) {
            assert!(self.0.push(item).is_ok(), "it has no bound");
        }

        pub(crate) fn pop(&self) -> Option<T> {
            self.0.pop()
        }

        pub(crate) fn len(&self) -> usize {
            self.0.len()
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.len() == 0
        }
    }
}

pub(crate) use imp::{AtomicBool, AtomicU64, GrowingQueue, Ordering, Queue, fence};

/// Seeded faults, one at a time, that the models must catch. Outside loom builds `is` is a
/// constant `false`, and the fault's code vanishes.
pub(crate) mod mutant {
    #[cfg(not(perf_loom))]
    pub(crate) const fn is(_name: &str) -> bool {
        false
    }

    #[cfg(perf_loom)]
    static ACTIVE: std::sync::Mutex<&'static str> = std::sync::Mutex::new("");

    #[cfg(perf_loom)]
    pub(crate) fn is(name: &str) -> bool {
        *super::cold::lock(&ACTIVE) == name
    }

    #[cfg(perf_loom)]
    pub(crate) fn set(name: &'static str) {
        *super::cold::lock(&ACTIVE) = name;
    }
}
