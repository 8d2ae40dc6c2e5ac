//! The concurrency primitives of the protocol, so that loom can stand in for the real ones.

#[cfg(not(perf_loom))]
mod imp {
    use bytes::Bytes;
    pub(crate) use crossbeam_queue::ArrayQueue as Queue;
    pub(crate) use parking_lot::Mutex;
    pub(crate) use perf_pool::BufferGuard as Buffer;
    use perf_pool::BytesGuard;
    pub(crate) use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

    /// A copy in a pooled buffer: no allocation in steady state.
    pub(crate) fn pooled(bytes: &[u8]) -> Bytes {
        let copy = BytesGuard::try_new(bytes.len()).and_then(|mut guard| {
            guard.put_slice(bytes)?;
            Ok(guard.freeze())
        });
        copy.unwrap_or_else(|_| Bytes::copy_from_slice(bytes))
    }
}

#[cfg(perf_loom)]
mod imp {
    use bytes::Bytes;
    use loom::sync::MutexGuard;
    pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
    use std::collections::VecDeque;

    /// Stands in for a pooled buffer: the pool is made of loom's primitives then, and outlives a model.
    #[derive(Debug)]
    pub(crate) struct Buffer(Vec<u8>);

    impl Buffer {
        pub(crate) fn new(size: usize) -> Self {
            Self(Vec::with_capacity(size))
        }

        pub(crate) fn get_mut(&mut self) -> &mut Vec<u8> {
            &mut self.0
        }
    }

    impl Buffer {
        pub(crate) fn get(&self) -> &Vec<u8> {
            &self.0
        }
    }

    impl std::ops::Deref for Buffer {
        type Target = [u8];

        fn deref(&self) -> &[u8] {
            &self.0
        }
    }

    pub(crate) fn pooled(bytes: &[u8]) -> Bytes {
        Bytes::copy_from_slice(bytes)
    }

    /// loom's mutex with the signature of parking_lot's.
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T: Default> Default for Mutex<T> {
        fn default() -> Self {
            Self::new(T::default())
        }
    }

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        }
    }

    /// Stands in for crossbeam's queue, which loom cannot see into: same promises, under a lock.
    #[derive(Debug)]
    pub(crate) struct Queue<T> {
        items: Mutex<VecDeque<T>>,
        capacity: usize,
    }

    impl<T> Queue<T> {
        pub(crate) fn new(capacity: usize) -> Self {
            Self {
                items: Mutex::new(VecDeque::new()),
                capacity,
            }
        }

        pub(crate) fn push(&self, item: T) -> Result<(), T> {
            let mut items = self.items.lock();
            if items.len() == self.capacity {
                return Err(item);
            }
            items.push_back(item);
            Ok(())
        }

        pub(crate) fn pop(&self) -> Option<T> {
            self.items.lock().pop_front()
        }
    }
}

pub(crate) use imp::*;

/// Deliberate faults that the tests must find: by loom under `--cfg perf_loom`, by the simulation and by
/// the tests of the shell under `--cfg perf_mutants`. Without these there are none.
pub(crate) mod mutant {
    /// Whether the fault of this name is switched on: never, so the branch is compiled away.
    #[cfg(not(any(perf_loom, perf_mutants)))]
    #[inline(always)]
    pub(crate) const fn is(_name: &str) -> bool {
        false
    }

    #[cfg(any(perf_loom, perf_mutants))]
    pub(crate) use switched::{is, set};

    #[cfg(any(perf_loom, perf_mutants))]
    mod switched {
        use std::sync::{LazyLock, Mutex};

        static CHOSEN: Mutex<Option<&'static str>> = Mutex::new(None);
        /// The fault of a whole process, for tests that run in one of their own.
        static OF_PROCESS: LazyLock<Option<String>> =
            LazyLock::new(|| std::env::var("PERF_MUTANT").ok());

        pub(crate) fn is(name: &str) -> bool {
            let is_chosen = CHOSEN.lock().is_ok_and(|chosen| *chosen == Some(name));
            is_chosen || OF_PROCESS.as_deref() == Some(name)
        }

        /// Switches one fault on, or all off. Process-wide: tests that choose must not overlap.
        pub(crate) fn set(name: Option<&'static str>) {
            if let Ok(mut chosen) = CHOSEN.lock() {
                *chosen = name;
            }
        }
    }
}
