//! The slab without its thread-locals: chunks of cells, the threads that write them, and their sums.
//!
//! A chunk belongs to at most one live thread at a time, and only that thread writes it, by a plain load and
//! store. When the thread ends, the chunk goes back with its sums in it, and its next
//! owner adds to them: nothing is ever moved or folded, so nothing can be lost or counted twice
//! however a reader interleaves. What is given back is ordered before what is taken by the lock of
//! the free list.

use super::ranges::Ranges;
use crate::primitive::plain::{AtomicU32, Ordering::Relaxed};
use crate::primitive::{AtomicU64, Mutex, Ordering, RwLock, leak_zeroed, mutant};

/// Cells that one thread writes.
pub(crate) type Chunk = &'static [AtomicU64];

/// The smallest chunk: 512 bytes, four lines.
#[cfg(not(perf_loom))]
const CHUNK_CELLS_MIN: usize = 64;
/// So small that a model of two cells already grows.
#[cfg(perf_loom)]
const CHUNK_CELLS_MIN: usize = 1;

/// How many cells there can be at most: 8 MiB a thread, most of it never touched.
pub(crate) const CELLS_MAX: u32 = 1 << 20;
/// How many wide cells there can be at most: 128 MiB of addresses an owner, most of it never touched.
pub(crate) const WIDE_CELLS_MAX: u32 = 1 << 24;

/// The smallest shared chunk of wide cells: 2 MiB of addresses, most of it never touched. A chunk that grows leaves behind what was touched.
#[cfg(not(perf_loom))]
pub(crate) const WIDE_SHARED_CELLS_MIN: usize = 1 << 18;
#[cfg(perf_loom)]
pub(crate) const WIDE_SHARED_CELLS_MIN: usize = 1;
/// The shared chunk grows by this power of two.
const SHARED_STEP: usize = 3;

const CLASSES: usize = (WIDE_CELLS_MAX as usize / CHUNK_CELLS_MIN).ilog2() as usize + 1;

const fn class_for(cells: usize) -> usize {
    cells.div_ceil(CHUNK_CELLS_MIN).next_power_of_two().ilog2() as usize
}

const fn class_cells(class: usize) -> usize {
    CHUNK_CELLS_MIN << class
}

#[derive(Debug)]
pub(crate) struct Slab {
    /// How many cells can be reserved.
    cells_max: u32,
    shared_cells_min: usize,
    ranges: Mutex<Ranges>,
    /// How many cells are reserved, and how often some were given back: hints, beside the lock of `ranges`.
    used: AtomicU32,
    returns: AtomicU32,
    /// How many threads have a chunk.
    owners: AtomicU32,
    /// Every chunk ever made. Readers sum over all of them.
    chunks: RwLock<Vec<Chunk>>,
    /// Chunks without an owner, by class.
    free: Mutex<[Vec<Chunk>; CLASSES]>,
    /// Where threads write that have no chunk of their own; see [`shared`](Self::shared).
    shared: RwLock<Option<Chunk>>,
}

macro_rules! new_slab {
    ($cells_max:expr, $shared_cells_min:expr) => {
        Self {
            cells_max: $cells_max,
            shared_cells_min: $shared_cells_min,
            used: AtomicU32::new(0),
            returns: AtomicU32::new(0),
            owners: AtomicU32::new(0),
            ranges: Mutex::new(Ranges::new()),
            chunks: RwLock::new(Vec::new()),
            free: Mutex::new([const { Vec::new() }; CLASSES]),
            shared: RwLock::new(None),
        }
    };
}

impl Slab {
    #[cfg(not(perf_loom))]
    pub(crate) const fn new(cells_max: u32, shared_cells_min: usize) -> Self {
        new_slab!(cells_max, shared_cells_min)
    }

    #[cfg(perf_loom)]
    pub(crate) fn new(cells_max: u32, shared_cells_min: usize) -> Self {
        new_slab!(cells_max, shared_cells_min)
    }

    /// Reserves `len` cells that are zero in every chunk; `None` if so many are not left.
    pub(crate) fn reserve(&self, len: u32) -> Option<u32> {
        let start = self.ranges.lock().take(len, self.cells_max)?;
        // Relaxed, here and below: a number that is shown and compared, and orders nothing.
        self.used.fetch_add(len, Relaxed);
        Some(start)
    }

    /// How many cells are not reserved; they need not lie in a row.
    pub(crate) fn free_cells(&self) -> u32 {
        self.cells_max.saturating_sub(self.used.load(Relaxed))
    }

    /// How often cells were given back.
    pub(crate) fn returns(&self) -> u32 {
        self.returns.load(Relaxed)
    }

    /// Counts one more owner of a chunk, if there are less than `max`.
    pub(crate) fn try_own(&self, max: u32) -> bool {
        let one_more = |owners: u32| (owners < max).then_some(owners + 1);
        self.owners.fetch_update(Relaxed, Relaxed, one_more).is_ok()
    }

    /// An owner has given its chunk back.
    pub(crate) fn disown(&self) {
        self.owners.fetch_sub(1, Relaxed);
    }

    /// Takes back a range. The caller promises that no thread records to it any more.
    pub(crate) fn unreserve(&self, start: u32, len: u32) {
        // Zeroed before it can be given out again. The next user's records are ordered behind these stores by
        // the lock of `ranges` and by however it is told of its range.
        for chunk in self.chunks.read().iter() {
            for cell in cells_of(chunk, start, len) {
                // A store to a page that was never touched would bring it into memory.
                if cell.load(Ordering::Relaxed) != 0 {
                    cell.store(0, Ordering::Relaxed);
                }
            }
        }
        self.ranges.lock().give_back(start, len);
        self.used.fetch_sub(len, Relaxed);
        self.returns.fetch_add(1, Relaxed);
    }

    /// The class of a chunk that holds cell `id`: large enough for all that is reserved, so that a thread rarely grows twice.
    fn class_of(&self, id: u32) -> usize {
        class_for(self.ranges.lock().end().max(id.saturating_add(1)) as usize)
    }

    /// Whether a chunk that holds cell `id` waits for an owner.
    pub(crate) fn has_free(&self, id: u32) -> bool {
        let class = self.class_of(id);
        self.free.lock()[class..]
            .iter()
            .any(|chunks| !chunks.is_empty())
    }

    /// A chunk that holds cell `id`, for this thread alone. `old` is the one it had.
    pub(crate) fn lease(&self, id: u32, old: Option<Chunk>) -> Chunk {
        if let Some(old) = old {
            self.release(old);
        }
        let class = self.class_of(id);
        let reused = {
            let mut free = self.free.lock();
            if mutant::is("slab_lease_keeps_chunk_free") {
                free[class..]
                    .iter()
                    .find_map(|chunks| chunks.last().copied())
            } else {
                free[class..].iter_mut().find_map(Vec::pop)
            }
        };
        reused.unwrap_or_else(|| self.make(class))
    }

    /// Gives a chunk to the next thread that asks, sums and all.
    pub(crate) fn release(&self, chunk: Chunk) {
        self.free.lock()[class_for(chunk.len())].push(chunk);
    }

    fn make(&self, class: usize) -> Chunk {
        let chunk = leak_zeroed(class_cells(class));
        // Before its first record, so that no record can be missed.
        self.chunks.write().push(chunk);
        chunk
    }

    /// A chunk that reaches to cell `id`, for threads that have none of their own: those that record seldom, those beyond the number of
    /// owners, and those whose thread-locals are being destroyed. It must be written by read-modify-write.
    pub(crate) fn shared(&self, id: u32) -> Option<Chunk> {
        let reaches = |chunk: &Chunk| chunk.len() > id as usize;
        let shared = *self.shared.read();
        if let Some(chunk) = shared.filter(reaches) {
            return Some(chunk);
        }
        let smallest = class_for(self.shared_cells_min);
        let steps = self
            .class_of(id)
            .saturating_sub(smallest)
            .div_ceil(SHARED_STEP);
        let class = (smallest + steps * SHARED_STEP).min(class_for(self.cells_max as usize));
        let mut shared = self.shared.write();
        if !shared.as_ref().is_some_and(reaches) {
            // The shorter one stays among `chunks` with what was recorded in it. It is not leased to a thread:
            // another may be about to write to it by read-modify-write.
            *shared = Some(self.make(class));
        }
        *shared
    }

    /// Calls `fold` with what each chunk holds in cell `id`.
    pub(crate) fn for_each(&self, id: u32, mut fold: impl FnMut(u64)) {
        for chunk in self.chunks.read().iter() {
            if let Some(cell) = chunk.get(id as usize) {
                // Relaxed: one cell's values have one order, in which they only grow. A record that happened
                // before this read (its thread was joined, a message came from it) is seen.
                fold(cell.load(Ordering::Relaxed));
                if mutant::is("slab_reader_clears") {
                    cell.store(0, Ordering::Relaxed);
                }
            }
        }
    }

    /// The largest value that is in cell `id` of any chunk, which is zero afterwards.
    pub(crate) fn take_max(&self, id: u32) -> u64 {
        let mut max = 0;
        for chunk in self.chunks.read().iter() {
            if let Some(cell) = chunk.get(id as usize)
                // Most chunks hold nothing: their threads' cache lines stay with them.
                && cell.load(Ordering::Relaxed) != 0
            {
                // Relaxed: the value stands for itself. By swap: what the owner stores between a load and a
                // store of ours would be lost.
                max = max.max(if mutant::is("slab_take_by_store") {
                    let seen = cell.load(Ordering::Relaxed);
                    cell.store(0, Ordering::Relaxed);
                    seen
                } else {
                    cell.swap(0, Ordering::Relaxed)
                });
            }
        }
        max
    }

    /// Adds up `out.len()` cells from `start` over all chunks, under one lock.
    pub(crate) fn sum_into(&self, start: u32, out: &mut [u64]) {
        out.fill(0);
        let len = u32::try_from(out.len()).unwrap_or(u32::MAX);
        for chunk in self.chunks.read().iter() {
            for (sum, cell) in out.iter_mut().zip(cells_of(chunk, start, len)) {
                *sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
                if mutant::is("slab_reader_clears") {
                    cell.store(0, Ordering::Relaxed);
                }
            }
        }
    }

    /// How many chunks were ever made.
    pub(crate) fn chunk_count(&self) -> usize {
        self.chunks.read().len()
    }
}

/// The part of the range that `chunk` holds.
fn cells_of(chunk: Chunk, start: u32, len: u32) -> Chunk {
    let start = (start as usize).min(chunk.len());
    let end = start.saturating_add(len as usize).min(chunk.len());
    &chunk[start..end]
}

#[cfg(all(test, not(perf_loom)))]
mod tests {
    use super::*;

    #[test]
    fn classes_cover_every_number_of_cells() {
        assert_eq!((class_for(0), class_for(1), class_for(64)), (0, 0, 0));
        assert_eq!((class_for(65), class_for(128)), (1, 1));
        assert_eq!(class_for(WIDE_CELLS_MAX as usize), CLASSES - 1);
        for cells in [
            1,
            63,
            64,
            65,
            1000,
            4096,
            CELLS_MAX as usize,
            WIDE_CELLS_MAX as usize,
        ] {
            assert!(class_cells(class_for(cells)) >= cells);
        }
    }

    #[test]
    fn a_chunk_starts_on_a_cache_line() {
        for len in [64, 128, 4096] {
            let chunk = leak_zeroed(len);
            assert_eq!(chunk.len(), len);
            assert_eq!(
                chunk.as_ptr().align_offset(crate::cache_line::LINE_BYTES),
                0
            );
        }
    }

    #[test]
    fn a_released_chunk_keeps_its_sums_and_its_next_owner_adds_to_them() {
        let slab = Slab::new(CELLS_MAX, 1);
        let id = slab.reserve(1).unwrap();
        let chunk = slab.lease(id, None);
        chunk[id as usize].store(5, Ordering::Relaxed);
        slab.release(chunk);
        let again = slab.lease(id, None);
        assert!(std::ptr::eq(chunk, again));
        again[id as usize].fetch_add(2, Ordering::Relaxed);
        let mut sum = [0];
        slab.sum_into(id, &mut sum);
        assert_eq!((sum, slab.chunk_count()), ([7], 1));
    }

    #[test]
    fn growing_moves_nothing_and_loses_nothing() {
        let slab = Slab::new(CELLS_MAX, 1);
        let first = slab.reserve(1).unwrap();
        let small = slab.lease(first, None);
        small[0].store(5, Ordering::Relaxed);
        let far = slab.reserve(1000).unwrap() + 999;
        assert!(far as usize >= small.len());
        let large = slab.lease(far, Some(small));
        large[first as usize].store(1, Ordering::Relaxed);
        large[far as usize].store(9, Ordering::Relaxed);
        let mut sums = [0; 1001];
        slab.sum_into(0, &mut sums);
        assert_eq!(
            (sums[0], sums[1000], sums[1..1000].iter().sum::<u64>()),
            (6, 9, 0)
        );
    }

    #[test]
    fn a_range_that_comes_back_is_zero_when_it_is_given_out_again() {
        let slab = Slab::new(CELLS_MAX, 1);
        let start = slab.reserve(3).unwrap();
        let chunk = slab.lease(start + 2, None);
        chunk[start as usize + 1].store(4, Ordering::Relaxed);
        slab.shared(start).unwrap()[start as usize].store(4, Ordering::Relaxed);
        slab.unreserve(start, 3);
        assert_eq!(slab.reserve(3), Some(start));
        let mut sums = [9; 3];
        slab.sum_into(start, &mut sums);
        assert_eq!(sums, [0; 3]);
    }

    #[test]
    fn a_full_slab_says_so_and_takes_again_after_a_return() {
        let slab = Slab::new(CELLS_MAX, 1);
        assert_eq!(slab.reserve(CELLS_MAX), Some(0));
        assert_eq!(slab.reserve(1), None);
        slab.unreserve(0, CELLS_MAX);
        assert_eq!(slab.reserve(2), Some(0));
    }
}
