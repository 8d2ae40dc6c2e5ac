//! The lock of an instrument's series, so that loom can stand in for it, and deliberate faults.
//!
//! Locks that are never held while cells are read or written need no stand-in: loom switches threads at cells alone.

#[cfg(not(perf_loom))]
pub(crate) use parking_lot::Mutex;

#[cfg(perf_loom)]
pub(crate) use on_loom::Mutex;

#[cfg(perf_loom)]
mod on_loom {
    use std::sync::PoisonError;

    /// loom's mutex with the signature of parking_lot's.
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

/// Deliberate faults that the loom tests must find. Outside of loom there are none.
pub(crate) mod mutant {
    /// Whether the fault of this name is switched on: never, so the branch is compiled away.
    #[cfg(not(perf_loom))]
    #[inline(always)]
    pub(crate) const fn is(_name: &str) -> bool {
        false
    }

    #[cfg(perf_loom)]
    pub(crate) fn is(name: &str) -> bool {
        perf_atomics::__loom::is_mutant(name)
    }
}
