//! A counter that every thread adds to in a cell of its own.

use crate::primitive::plain::{AtomicU32, AtomicU64, Ordering};
use crate::slab;
use std::fmt;

/// No cell yet: the first add reserves one.
const UNRESERVED: u32 = u32::MAX;
/// The slab had no cell left: this counter counts in its own shared word.
const SHARED: u32 = u32::MAX - 1;
const _: () = assert!(slab::CELLS_MAX < SHARED as usize);

/// Counts events. An add is a plain load and store in a cell that no other thread writes, a read sums the cells.
///
/// Exact: a read sees everything added by threads that were joined, and by whatever else happened before it.
/// Reads never go back. The total wraps at `2^64`.
///
/// An add costs no lock, no allocation and no read-modify-write; the first add of a thread takes a
/// chunk of the [`slab`](crate::slab). A read costs one load per thread that ever recorded at the same time.
/// When all [`slab::CELLS_MAX`](crate::slab::CELLS_MAX) cells are taken, the counter
/// stays exact and adds to one shared word instead.
///
/// ```
/// use perf_atomics::OwnedCounter;
///
/// static REQUESTS: OwnedCounter = OwnedCounter::new();
///
/// std::thread::scope(|scope| {
///     for _ in 0..4 {
///         scope.spawn(|| (0..1000).for_each(|_| REQUESTS.increment()));
///     }
/// });
/// assert_eq!(REQUESTS.get(), 4000);
/// ```
pub struct OwnedCounter {
    /// The cell's number, or one of the two constants above.
    id: AtomicU32,
    /// What was added while `id` was [`SHARED`].
    shared: AtomicU64,
}

impl OwnedCounter {
    /// A counter at zero. Reserves its cell at the first add.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            id: AtomicU32::new(UNRESERVED),
            shared: AtomicU64::new(0),
        }
    }

    /// Adds one.
    #[inline]
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `amount`.
    #[inline]
    pub fn add(&self, amount: u64) {
        // Acquire: the cell was zeroed before its number was stored here, and this thread must not
        // add to what an earlier counter left in its copy. Both constants lie beyond every chunk.
        match slab::cell(self.id.load(Ordering::Acquire)) {
            Some(cell) => slab::change_own(cell, |value| value.wrapping_add(amount)),
            None => self.add_slow(amount),
        }
    }

    #[cold]
    #[inline(never)]
    fn add_slow(&self, amount: u64) {
        let id = self.reserved_id();
        let add = |value: u64| value.wrapping_add(amount);
        match (id != SHARED).then(|| slab::cell_slow(id)).flatten() {
            Some((cell, false)) => slab::change_own(cell, add),
            Some((cell, true)) => slab::change_shared(cell, add),
            None => {
                self.shared.fetch_add(amount, Ordering::Relaxed);
            }
        }
    }

    /// The cell's number, after reserving one if there was none.
    fn reserved_id(&self) -> u32 {
        let id = self.id.load(Ordering::Acquire);
        if id != UNRESERVED {
            return id;
        }
        let new = slab::global::<false>().reserve(1).unwrap_or(SHARED);
        match self
            .id
            .compare_exchange(UNRESERVED, new, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => new,
            Err(other) => {
                // Another thread was faster; nobody has seen ours.
                if new != SHARED {
                    slab::global::<false>().unreserve(new, 1);
                }
                other
            }
        }
    }

    /// The total.
    #[must_use]
    pub fn get(&self) -> u64 {
        let mut total = self.shared.load(Ordering::Relaxed);
        // `for_each` visits no chunk for the two constants: they lie beyond every chunk.
        slab::global::<false>().for_each(self.id.load(Ordering::Acquire), |value| {
            total = total.wrapping_add(value)
        });
        total
    }
}

impl Default for OwnedCounter {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for OwnedCounter {
    fn drop(&mut self) {
        let id = *self.id.get_mut();
        if id < SHARED {
            slab::global::<false>().unreserve(id, 1);
        }
    }
}

impl fmt::Debug for OwnedCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnedCounter").field(&self.get()).finish()
    }
}
