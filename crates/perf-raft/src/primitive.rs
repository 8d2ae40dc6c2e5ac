//! The concurrency primitives of this crate, so that loom or shuttle can stand in for the real ones, and its deliberate faults.

#[cfg(not(perf_loom))]
pub(crate) use threads::{AtomicU32, Mutex};

#[cfg(perf_loom)]
pub(crate) use loom::sync::atomic::AtomicU32;
#[cfg(perf_loom)]
pub(crate) use on_loom::Mutex;

pub(crate) use std::sync::atomic::Ordering;

/// Locks, threads and tasks of the shell.
#[cfg(not(perf_mutants))]
pub(crate) mod threads {
    pub(crate) use parking_lot::{Condvar, Mutex};
    #[cfg(not(perf_loom))]
    pub(crate) use std::sync::atomic::AtomicU32;
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64};
    pub(crate) use std::{thread, thread_local};
    pub(crate) use tokio::task::spawn_blocking;

    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(task);
    }
}

/// The same on shuttle's scheduler.
#[cfg(perf_mutants)]
pub(crate) mod threads;

#[cfg(perf_loom)]
mod on_loom {
    /// loom's mutex with the signature of parking_lot's.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        }

        pub(crate) fn get_mut(&mut self) -> &mut T {
            self.0
                .get_mut()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        }
    }
}

/// Deliberate faults that the simulation and the loom tests must find. In shipped code there are none.
pub(crate) mod mutant {
    /// Whether the fault of this name is switched on: never, so the branch is compiled away.
    #[cfg(not(any(perf_mutants, perf_loom)))]
    #[inline(always)]
    pub(crate) const fn is(_name: &str) -> bool {
        false
    }

    #[cfg(any(perf_mutants, perf_loom))]
    pub(crate) use switched::{is, set};

    #[cfg(any(perf_mutants, perf_loom))]
    mod switched {
        use std::sync::Mutex;

        static CHOSEN: Mutex<Option<&'static str>> = Mutex::new(None);

        pub(crate) fn is(name: &str) -> bool {
            CHOSEN.lock().is_ok_and(|chosen| *chosen == Some(name))
        }

        /// Switches one fault on, or all off. Process-wide: tests that choose must not overlap.
        pub(crate) fn set(name: Option<&'static str>) {
            if let Ok(mut chosen) = CHOSEN.lock() {
                *chosen = name;
            }
        }
    }
}
