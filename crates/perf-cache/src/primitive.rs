//! The concurrency primitives of the protocols that loom checks: std and parking_lot normally, loom under
//! `--cfg perf_loom`.

#[cfg(not(perf_loom))]
mod imp {
    pub(crate) use parking_lot::{Condvar, Mutex, RwLock};
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
}

#[cfg(perf_loom)]
mod imp {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
    use std::sync::PoisonError;

    /// loom's mutex with the signature of parking_lot's.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)))
        }
    }

    /// Taken out only while a condition variable waits with it.
    pub(crate) struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

    impl<T> std::ops::Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_ref().expect("held outside of a wait")
        }
    }

    impl<T> std::ops::DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("held outside of a wait")
        }
    }

    #[derive(Debug)]
    pub(crate) struct Condvar(loom::sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self(loom::sync::Condvar::new())
        }

        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            if let Some(held) = guard.0.take() {
                guard.0 = Some(self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
            }
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    /// loom's read-write lock with the signature of parking_lot's.
    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(loom::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> loom::sync::RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn write(&self) -> loom::sync::RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

pub(crate) use imp::*;

/// Deliberate faults that the loom tests must find. Outside of loom there are none.
pub(crate) mod mutant {
    /// Whether the fault of this name is switched on: never, so the branch is compiled away.
    #[cfg(not(perf_loom))]
    #[inline(always)]
    pub(crate) const fn is(_name: &str) -> bool {
        false
    }

    #[cfg(perf_loom)]
    static CHOSEN: std::sync::Mutex<Option<&'static str>> = std::sync::Mutex::new(None);

    #[cfg(perf_loom)]
    pub(crate) fn is(name: &str) -> bool {
        CHOSEN.lock().is_ok_and(|chosen| *chosen == Some(name))
    }

    #[cfg(perf_loom)]
    pub(crate) fn set(name: Option<&'static str>) {
        if let Ok(mut chosen) = CHOSEN.lock() {
            *chosen = name;
        }
    }
}
