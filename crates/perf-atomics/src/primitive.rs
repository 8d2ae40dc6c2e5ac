//! The concurrency primitives of this crate, so that loom can stand in for the real ones.
//!
//! Everything whose correctness needs more than one memory location goes through here. Types of a
//! single word ([`AtomicFlags`](crate::AtomicFlags), [`StateCounter`](crate::StateCounter), the word
//! of the clock) use [`plain`]: loom's atomics have no `const` constructor, and one location
//! alone has one modification order whatever the ordering.

/// The real atomics, also under loom.
pub(crate) mod plain {
    pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}

#[cfg(not(perf_loom))]
mod imp {
    pub(crate) use parking_lot::{Mutex, RwLock};
    pub(crate) use std::hint::spin_loop;
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};

    use crate::cache_line::LINE_BYTES;
    use arc_swap::ArcSwap;
    use std::sync::Arc;

    /// `len` zeroed cells that live as long as the program.
    ///
    /// Memory comes zeroed from the allocator, so pages that are not written are never touched. The
    /// slice has whole cache lines to itself, so that two threads' cells never share one.
    pub(crate) fn leak_zeroed(len: usize) -> &'static [AtomicU64] {
        let line_cells = LINE_BYTES / size_of::<AtomicU64>();
        let room = len.next_multiple_of(line_cells) + line_cells;
        let cells: &'static [AtomicU64] = Box::leak(bytemuck::zeroed_slice_box::<AtomicU64>(room));
        let skip = cells.as_ptr().align_offset(LINE_BYTES);
        // `align_offset` is allowed to give up. Alignment is a matter of speed alone, so the
        // unaligned start then serves.
        cells
            .get(skip..skip.saturating_add(len))
            .unwrap_or(&cells[..len])
    }

    /// An `Arc` that is read without a lock and replaced by compare-and-swap.
    #[derive(Debug)]
    pub(crate) struct Swap<T>(ArcSwap<T>);

    impl<T> Swap<T> {
        pub(crate) fn new(value: Arc<T>) -> Self {
            Self(ArcSwap::new(value))
        }

        /// Runs `read` on the current value, without touching its reference count where possible.
        #[inline]
        pub(crate) fn with<R>(&self, read: impl FnOnce(&T) -> R) -> R {
            read(&self.0.load())
        }

        pub(crate) fn load_full(&self) -> Arc<T> {
            self.0.load_full()
        }

        /// Puts `new` in the place of `current`; `false` if something else is there by now.
        pub(crate) fn replace(&self, current: &Arc<T>, new: Arc<T>) -> bool {
            Arc::ptr_eq(&self.0.compare_and_swap(current, new), current)
        }
    }
}

#[cfg(perf_loom)]
mod imp {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};

    use std::sync::Arc;

    pub(crate) fn leak_zeroed(len: usize) -> &'static [AtomicU64] {
        Box::leak((0..len).map(|_| AtomicU64::new(0)).collect())
    }

    /// loom's mutex with the signature of parking_lot's.
    #[derive(Debug)]
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
    }

    /// loom's read-write lock with the signature of parking_lot's.
    #[derive(Debug)]
    pub(crate) struct RwLock<T>(loom::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> loom::sync::RwLockReadGuard<'_, T> {
            self.0
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        }

        pub(crate) fn write(&self) -> loom::sync::RwLockWriteGuard<'_, T> {
            self.0
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        }
    }

    /// What arc-swap promises, by a lock: loom does not see into arc-swap.
    #[derive(Debug)]
    pub(crate) struct Swap<T>(Mutex<Arc<T>>);

    impl<T> Swap<T> {
        pub(crate) fn new(value: Arc<T>) -> Self {
            Self(Mutex::new(value))
        }

        pub(crate) fn with<R>(&self, read: impl FnOnce(&T) -> R) -> R {
            read(&self.load_full())
        }

        pub(crate) fn load_full(&self) -> Arc<T> {
            Arc::clone(&self.0.lock())
        }

        pub(crate) fn replace(&self, current: &Arc<T>, new: Arc<T>) -> bool {
            let mut held = self.0.lock();
            let same = Arc::ptr_eq(&held, current);
            if same || super::mutant::is("membership_blind_swap") {
                *held = new;
                return true;
            }
            same
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
    pub(crate) use on_loom::{is, set};

    #[cfg(perf_loom)]
    mod on_loom {
        use std::sync::Mutex;

        static CHOSEN: Mutex<Option<&'static str>> = Mutex::new(None);

        pub(crate) fn is(name: &str) -> bool {
            CHOSEN.lock().is_ok_and(|chosen| *chosen == Some(name))
        }

        /// Switches one fault on, or all off. Process-wide: models that choose must not overlap.
        pub(crate) fn set(name: Option<&'static str>) {
            if let Ok(mut chosen) = CHOSEN.lock() {
                *chosen = name;
            }
        }
    }
}
