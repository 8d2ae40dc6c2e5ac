//! The hot path: this thread's chunk.
//!
//! Two thread-locals, because only one of them may have a destructor: a thread-local with a destructor asks
//! at each access whether it still lives. `CHUNK` has none, so an access is one load relative to the
//! thread pointer; `LEASE` has one, and is touched only when a chunk is taken.

use super::core::{Chunk, Slab};
use crate::primitive::{AtomicU64, Ordering};
use std::cell::Cell;

#[cfg(not(perf_loom))]
mod statics {
    use super::{Cell, Chunk, Lease, Slab};

    static SLAB: Slab = Slab::new();

    pub(crate) fn global() -> &'static Slab {
        &SLAB
    }

    thread_local! {
        /// This thread's chunk; empty before the first record and after the end of `LEASE`.
        pub(super) static CHUNK: Cell<Chunk> = const { Cell::new(&[]) };
        pub(super) static LEASE: Lease = const { Lease(Cell::new(None)) };
    }
}

#[cfg(perf_loom)]
mod statics {
    use super::{Cell, Chunk, Lease, Slab};

    loom::lazy_static! {
        static ref SLAB: Slab = Slab::new();
    }

    pub(crate) fn global() -> &'static Slab {
        &SLAB
    }

    loom::thread_local! {
        pub(super) static CHUNK: Cell<Chunk> = Cell::new(&[]);
        pub(super) static LEASE: Lease = Lease(Cell::new(None));
    }
}

pub(crate) use statics::global;
use statics::{CHUNK, LEASE};

/// Gives the thread's chunk back when the thread ends.
struct Lease(Cell<Option<Chunk>>);

impl Drop for Lease {
    fn drop(&mut self) {
        // From here on this thread's records find an empty chunk, and no new lease.
        let _ = CHUNK.try_with(|chunk| chunk.set(&[]));
        if let Some(chunk) = self.0.take() {
            global().release(chunk);
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
pub(crate) fn cells(start: u32, len: usize) -> Option<&'static [AtomicU64]> {
    let start = start as usize;
    CHUNK
        .try_with(|chunk| chunk.get().get(start..start + len))
        .ok()
        .flatten()
}

/// Takes a chunk that reaches to the range; if this thread can have none any more, the second part
/// is `true` and the cells are shared.
#[cold]
#[inline(never)]
pub(crate) fn cells_slow(start: u32, len: u32) -> Option<(&'static [AtomicU64], bool)> {
    let last = start.saturating_add(len - 1);
    let range = start as usize..last as usize + 1;
    let leased = LEASE.try_with(|lease| {
        let chunk = global().lease(last, lease.0.take());
        lease.0.set(Some(chunk));
        let _ = CHUNK.try_with(|own| own.set(chunk));
        chunk
    });
    match leased {
        Ok(chunk) => chunk.get(range).map(|cells| (cells, false)),
        Err(_destroyed) => global().orphan(last)?.get(range).map(|cells| (cells, true)),
    }
}

/// [`cells_slow`] for one cell.
#[cold]
#[inline(never)]
pub(crate) fn cell_slow(id: u32) -> Option<(&'static AtomicU64, bool)> {
    let (cells, is_shared) = cells_slow(id, 1)?;
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
    let mut seen = cell.load(Ordering::Relaxed);
    while let Err(newer) =
        cell.compare_exchange_weak(seen, change(seen), Ordering::Relaxed, Ordering::Relaxed)
    {
        seen = newer;
    }
}
