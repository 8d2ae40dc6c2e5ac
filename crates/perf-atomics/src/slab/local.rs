//! The hot path: this thread's chunk.
//!
//! Two thread-locals, because only one of them may have a destructor: a thread-local with a destructor asks
//! at each access whether it still lives. `CHUNK` has none, so an access is one load relative to the
//! thread pointer; `LEASE` has one, and is touched only when a chunk is taken.

use super::core::{CELLS_MAX, Chunk, Slab, WIDE_CELLS_MAX, WIDE_SHARED_CELLS_MIN};
use crate::primitive::{AtomicU64, Ordering, mutant};
use std::cell::Cell;

#[cfg(not(perf_loom))]
mod statics {
    use super::{CELLS_MAX, Cell, Chunk, Lease, Slab, WIDE_CELLS_MAX, WIDE_SHARED_CELLS_MIN};

    static SLAB: Slab = Slab::new(CELLS_MAX, 1);
    static WIDE_SLAB: Slab = Slab::new(WIDE_CELLS_MAX, WIDE_SHARED_CELLS_MIN);

    #[inline]
    pub(crate) fn global<const WIDE: bool>() -> &'static Slab {
        if WIDE { &WIDE_SLAB } else { &SLAB }
    }

    thread_local! {
        /// This thread's chunk; empty before the first record and after the end of `LEASE`.
        pub(super) static CHUNK: Cell<Chunk> = const { Cell::new(&[]) };
        pub(super) static LEASE: Lease<false> = const { Lease(Cell::new(None)) };
        /// The shared chunk as this thread last saw it, so that it takes no lock for it.
        pub(super) static SHARED: Cell<Chunk> = const { Cell::new(&[]) };
        /// How often this thread has recorded to the shared chunk.
        pub(super) static VISITS: Cell<u32> = const { Cell::new(0) };
        /// The same of wide cells; empty also while this thread has none of its own.
        pub(super) static WIDE_CHUNK: Cell<Chunk> = const { Cell::new(&[]) };
        pub(super) static WIDE_LEASE: Lease<true> = const { Lease(Cell::new(None)) };
        pub(super) static WIDE_SHARED: Cell<Chunk> = const { Cell::new(&[]) };
        pub(super) static WIDE_VISITS: Cell<u32> = const { Cell::new(0) };
    }
}

#[cfg(perf_loom)]
mod statics {
    use super::{CELLS_MAX, Cell, Chunk, Lease, Slab, WIDE_CELLS_MAX, WIDE_SHARED_CELLS_MIN};

    loom::lazy_static! {
        // Leaked: a model may end while a thread that it has joined is still giving its chunk back.
        static ref SLAB: &'static Slab = Box::leak(Box::new(Slab::new(CELLS_MAX, 1)));
        static ref WIDE_SLAB: &'static Slab = Box::leak(Box::new(Slab::new(WIDE_CELLS_MAX, WIDE_SHARED_CELLS_MIN)));
    }

    pub(crate) fn global<const WIDE: bool>() -> &'static Slab {
        if WIDE { *WIDE_SLAB } else { *SLAB }
    }

    loom::thread_local! {
        pub(super) static CHUNK: Cell<Chunk> = Cell::new(&[]);
        pub(super) static LEASE: Lease<false> = Lease(Cell::new(None));
        pub(super) static SHARED: Cell<Chunk> = Cell::new(&[]);
        pub(super) static VISITS: Cell<u32> = Cell::new(0);
        pub(super) static WIDE_CHUNK: Cell<Chunk> = Cell::new(&[]);
        pub(super) static WIDE_LEASE: Lease<true> = Lease(Cell::new(None));
        pub(super) static WIDE_SHARED: Cell<Chunk> = Cell::new(&[]);
        pub(super) static WIDE_VISITS: Cell<u32> = Cell::new(0);
    }
}

pub(crate) use statics::global;
use statics::{CHUNK, LEASE, SHARED, VISITS, WIDE_CHUNK, WIDE_LEASE, WIDE_SHARED, WIDE_VISITS};

/// How many threads have cells of their own, for each core, at least and at most. Other threads share a copy: the owners are so many that
/// the cores are busy without the others, and so few that memory and the cost of reading do not grow with the threads.
#[cfg(not(perf_loom))]
struct Owners {
    by_core: u32,
    min: u32,
    max: u32,
}

#[cfg(not(perf_loom))]
const OWNERS: Owners = Owners {
    by_core: 8,
    min: 32,
    max: 256,
};
/// A copy of wide cells is larger by far.
#[cfg(not(perf_loom))]
const WIDE_OWNERS: Owners = Owners {
    by_core: 2,
    min: 4,
    max: 64,
};

/// After how many records to the shared copy a thread has one of its own: so many that a copy is worth its memory.
#[cfg(not(perf_loom))]
const OWN_AFTER: u32 = 1024;
#[cfg(not(perf_loom))]
const WIDE_OWN_AFTER: u32 = 4096;
/// At once, so that a model of two records meets copies of the threads' own.
#[cfg(perf_loom)]
const OWN_AFTER: u32 = 0;
#[cfg(perf_loom)]
const WIDE_OWN_AFTER: u32 = 0;

/// A thread that shares looks so often, in records, for a chunk that another thread has left.
const LOOK_EVERY: u32 = 64;

/// See [`Owners`].
#[cfg(perf_loom)]
fn owners_max<const WIDE: bool>() -> u32 {
    // So few that a model of two threads already shares wide cells.
    if WIDE { 1 } else { u32::MAX }
}

/// See [`Owners`].
#[cfg(not(perf_loom))]
fn owners_max<const WIDE: bool>() -> u32 {
    static CORES: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    let cores = *CORES.get_or_init(|| {
        std::thread::available_parallelism()
            .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
    });
    let owners = if WIDE { WIDE_OWNERS } else { OWNERS };
    cores
        .saturating_mul(owners.by_core)
        .clamp(owners.min, owners.max)
}

/// Whether this thread, which shares, is to have a copy of its own: it records often, or a copy is there that another thread has left.
fn is_to_own<const WIDE: bool>(last: u32) -> bool {
    let count = |visits: &Cell<u32>| {
        let before = visits.get();
        visits.set(before.saturating_add(1));
        before
    };
    let (visits, own_after) = if WIDE {
        (WIDE_VISITS.try_with(count), WIDE_OWN_AFTER)
    } else {
        (VISITS.try_with(count), OWN_AFTER)
    };
    let visits = visits.unwrap_or(0);
    visits >= own_after || visits % LOOK_EVERY == 0 && global::<WIDE>().has_free(last)
}

/// Gives the thread's chunk back when the thread ends.
struct Lease<const WIDE: bool>(Cell<Option<Chunk>>);

impl<const WIDE: bool> Drop for Lease<WIDE> {
    fn drop(&mut self) {
        // From here on this thread's records find an empty chunk, and no new lease.
        let empty = |chunk: &Cell<Chunk>| chunk.set(&[]);
        let _ = if WIDE {
            WIDE_CHUNK.try_with(empty)
        } else {
            CHUNK.try_with(empty)
        };
        if let Some(chunk) = self.0.take() {
            let slab = global::<WIDE>();
            slab.release(chunk);
            slab.disown();
        }
    }
}

/// This thread's copy of a cell, if its chunk reaches that far.
#[inline]
pub(crate) fn cell(id: u32) -> Option<&'static AtomicU64> {
    CHUNK
        .try_with(|chunk| chunk.get().get(id as usize))
        .ok()
        .flatten()
}

/// This thread's copy of a range, if its chunk reaches that far.
#[inline]
pub(crate) fn cells<const WIDE: bool>(start: u32, len: usize) -> Option<&'static [AtomicU64]> {
    let start = start as usize;
    let cells = |chunk: &Cell<Chunk>| chunk.get().get(start..start + len);
    let found = if WIDE {
        WIDE_CHUNK.try_with(cells)
    } else {
        CHUNK.try_with(cells)
    };
    found.ok().flatten()
}

/// Cells of a chunk that reaches to the range: this thread's own, or, as the second part says, the one that threads share.
#[cold]
#[inline(never)]
pub(crate) fn cells_slow<const WIDE: bool>(
    start: u32,
    len: u32,
) -> Option<(&'static [AtomicU64], bool)> {
    let cells_max = if WIDE { WIDE_CELLS_MAX } else { CELLS_MAX };
    // Also the range that has no cells, which starts beyond all.
    let last = start
        .checked_add(len.checked_sub(1)?)
        .filter(|last| *last < cells_max)?;
    let range = start as usize..last as usize + 1;
    let lease = |lease: &Cell<Option<Chunk>>, own: &dyn Fn(Chunk)| {
        let old = lease.take();
        if old.is_none()
            && !(is_to_own::<WIDE>(last) && global::<WIDE>().try_own(owners_max::<WIDE>()))
        {
            return None;
        }
        let chunk = global::<WIDE>().lease(last, old);
        lease.set(Some(chunk));
        own(chunk);
        Some(chunk)
    };
    let leased = if WIDE {
        WIDE_LEASE.try_with(|l| {
            lease(&l.0, &|chunk| {
                WIDE_CHUNK.try_with(|own| own.set(chunk)).unwrap_or(())
            })
        })
    } else {
        LEASE.try_with(|l| {
            lease(&l.0, &|chunk| {
                CHUNK.try_with(|own| own.set(chunk)).unwrap_or(())
            })
        })
    };
    if let Ok(Some(chunk)) = leased {
        return chunk.get(range).map(|cells| (cells, false));
    }
    let seen = |seen: &Cell<Chunk>| seen.get().get(range.clone());
    let found = if WIDE {
        WIDE_SHARED.try_with(seen)
    } else {
        SHARED.try_with(seen)
    };
    if let Ok(Some(cells)) = found {
        return Some((cells, true));
    }
    let shared = global::<WIDE>().shared(last)?;
    let see = |seen: &Cell<Chunk>| seen.set(shared);
    let _ = if WIDE {
        WIDE_SHARED.try_with(see)
    } else {
        SHARED.try_with(see)
    };
    shared.get(range).map(|cells| (cells, true))
}

/// [`cells_slow`] for one cell.
#[cold]
#[inline(never)]
pub(crate) fn cell_slow(id: u32) -> Option<(&'static AtomicU64, bool)> {
    let (cells, is_shared) = cells_slow::<false>(id, 1)?;
    cells.first().map(|cell| (cell, is_shared))
}

/// Changes a cell that only this thread writes.
///
/// Relaxed: the load reads this thread's own last store (or, in a chunk that had another owner,
/// that owner's, ordered by the lock of the free list); readers need no other memory beside it.
#[inline]
pub(crate) fn change_own(cell: &AtomicU64, change: impl Fn(u64) -> u64) {
    cell.store(change(cell.load(Ordering::Relaxed)), Ordering::Relaxed);
}

/// Adds to a cell that other threads write too: one read-modify-write that always succeeds.
#[inline]
pub(crate) fn add_shared(cell: &AtomicU64, amount: u64) {
    if mutant::is("slab_shared_by_store") {
        return change_own(cell, |value| value.wrapping_add(amount));
    }
    cell.fetch_add(amount, Ordering::Relaxed);
}

/// Changes a cell that other threads write too.
#[inline]
pub(crate) fn change_shared(cell: &AtomicU64, change: impl Fn(u64) -> u64) {
    if mutant::is("slab_shared_by_store") {
        return change_own(cell, change);
    }
    let mut seen = cell.load(Ordering::Relaxed);
    while let Err(newer) =
        cell.compare_exchange_weak(seen, change(seen), Ordering::Relaxed, Ordering::Relaxed)
    {
        seen = newer;
    }
}
