//! The hot path: this thread's chunk.
//!
//! Two thread-locals, because only one of them may have a destructor: a thread-local with a destructor asks
//! at each access whether it still lives. `CHUNK` has none, so an access is one load relative to the
//! thread pointer; `LEASE` has one, and is touched only when a chunk is taken.

use super::core::{CELLS_MAX, Chunk, Slab, WIDE_CELLS_MAX};
use crate::primitive::{AtomicU64, Ordering, mutant};
use std::cell::Cell;

#[cfg(not(perf_loom))]
mod statics {
    use super::{CELLS_MAX, Cell, Chunk, Lease, Slab, WIDE_CELLS_MAX};

    static SLAB: Slab = Slab::new(CELLS_MAX);
    static WIDE_SLAB: Slab = Slab::new(WIDE_CELLS_MAX);

    #[inline]
    pub(crate) fn global<const WIDE: bool>() -> &'static Slab {
        if WIDE { &WIDE_SLAB } else { &SLAB }
    }

    thread_local! {
        /// This thread's chunk; empty before the first record and after the end of `LEASE`.
        pub(super) static CHUNK: Cell<Chunk> = const { Cell::new(&[]) };
        pub(super) static LEASE: Lease<false> = const { Lease(Cell::new(None)) };
        /// The same of wide cells; empty also while this thread has none of its own.
        pub(super) static WIDE_CHUNK: Cell<Chunk> = const { Cell::new(&[]) };
        pub(super) static WIDE_LEASE: Lease<true> = const { Lease(Cell::new(None)) };
        /// The shared chunk as this thread last saw it, so that it takes no lock for it.
        pub(super) static WIDE_SHARED: Cell<Chunk> = const { Cell::new(&[]) };
    }
}

#[cfg(perf_loom)]
mod statics {
    use super::{CELLS_MAX, Cell, Chunk, Lease, Slab, WIDE_CELLS_MAX};

    loom::lazy_static! {
        // Leaked: a model may end while a thread that it has joined is still giving its chunk back.
        static ref SLAB: &'static Slab = Box::leak(Box::new(Slab::new(CELLS_MAX)));
        static ref WIDE_SLAB: &'static Slab = Box::leak(Box::new(Slab::new(WIDE_CELLS_MAX)));
    }

    pub(crate) fn global<const WIDE: bool>() -> &'static Slab {
        if WIDE { *WIDE_SLAB } else { *SLAB }
    }

    loom::thread_local! {
        pub(super) static CHUNK: Cell<Chunk> = Cell::new(&[]);
        pub(super) static LEASE: Lease<false> = Lease(Cell::new(None));
        pub(super) static WIDE_CHUNK: Cell<Chunk> = Cell::new(&[]);
        pub(super) static WIDE_LEASE: Lease<true> = Lease(Cell::new(None));
        pub(super) static WIDE_SHARED: Cell<Chunk> = Cell::new(&[]);
    }
}

pub(crate) use statics::global;
use statics::{CHUNK, LEASE, WIDE_CHUNK, WIDE_LEASE, WIDE_SHARED};

/// How many threads have wide cells of their own, at least and at most; between these twice the number of cores. Other threads share a
/// copy: so many that the cores are busy without it, so few that the memory does not grow with the threads.
#[cfg(not(perf_loom))]
const WIDE_OWNERS: std::ops::RangeInclusive<u32> = 4..=64;

/// See [`WIDE_OWNERS`].
#[cfg(perf_loom)]
pub(super) fn wide_owners_max() -> u32 {
    // So few that a model of two threads already shares.
    1
}

/// See [`WIDE_OWNERS`].
#[cfg(not(perf_loom))]
pub(super) fn wide_owners_max() -> u32 {
    static MAX: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *MAX.get_or_init(|| {
        let cores = std::thread::available_parallelism()
            .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
        cores
            .saturating_mul(2)
            .clamp(*WIDE_OWNERS.start(), *WIDE_OWNERS.end())
    })
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

/// Takes a chunk that reaches to the range; if this thread can have none, the second part is `true` and the cells are shared.
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
        let owners_max = if WIDE { wide_owners_max() } else { u32::MAX };
        if old.is_none() && !global::<WIDE>().try_own(owners_max) {
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
    if WIDE && let Ok(Some(cells)) = WIDE_SHARED.try_with(|seen| seen.get().get(range.clone())) {
        return Some((cells, true));
    }
    let shared = global::<WIDE>().orphan(last)?;
    if WIDE {
        let _ = WIDE_SHARED.try_with(|seen| seen.set(shared));
    }
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
