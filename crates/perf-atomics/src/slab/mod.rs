//! Cells that each thread writes for itself and anybody can sum.
//!
//! A shared counter costs a locked read-modify-write, and a cache line that travels between the cores. Here every
//! thread has its own copy of every cell, so recording is a plain load, an add and a plain
//! store; a reader adds the copies up. [`OwnedCounter`](crate::OwnedCounter) is one cell; a histogram is a range of
//! them.
//!
//! | | |
//! |---|---|
//! | recording | a thread-local load, a bounds check, a load and a store; no lock, no allocation, no read-modify-write |
//! | a thread's first 1024 records, and all of threads beyond eight a core (32 to 256) | go to a copy that threads share, by one read-modify-write |
//! | then, or as soon as another thread has left a chunk | the thread takes a chunk from the free list or makes one: locks, may allocate |
//! | first record beyond a chunk | takes a larger one in its place |
//! | reading | one lock against new chunks, one load per chunk; chunks are at most as many as threads that own one at once, and the shared one, times the growth steps |
//! | exactness | a sum read after a thread was joined holds all it recorded; sums never go back |
//! | thread exit | its chunk waits, with its sums, for the next thread |
//! | recording in the destructor of another thread-local | goes to a shared copy, by read-modify-write |
//! | bound | [`CELLS_MAX`] cells; then [`SlabFull`] |
//!
//! Wide cells, for ranges of many, have another slab in which only a few threads have copies: [`reserve_wide`].
//!
//! Memory: a chunk holds 8 bytes per cell, for all cells reserved when the thread gets it,
//! rounded up to a power of two. Chunks are never freed, only reused. Threads that record seldom cost none.

mod core;
mod local;
mod ranges;

use self::core::{CELLS_MAX as CELLS_MAX_U32, WIDE_CELLS_MAX as WIDE_CELLS_MAX_U32};
use crate::primitive::{AtomicU64, Ordering};
use std::fmt;

pub(crate) use self::local::{cell, cell_slow, change_own, change_shared, global};

/// How many cells a process can have: `1 << 20`.
pub const CELLS_MAX: usize = CELLS_MAX_U32 as usize;

/// How many wide cells a process can have: `1 << 24`.
pub const WIDE_CELLS_MAX: usize = WIDE_CELLS_MAX_U32 as usize;

/// Reserves `len` neighbouring cells, all zero.
///
/// Takes a lock; linear in the number of gaps that dropped ranges left.
///
/// # Errors
/// [`SlabFull`] if `len` is zero or so many cells are not left in a row.
pub fn reserve(len: usize) -> Result<CellRange, SlabFull> {
    CellRange::reserve(len)
}

/// Reserves `len` neighbouring wide cells, all zero: for ranges of many cells, such as histograms.
///
/// Of wide cells only a few threads have copies of their own, twice as many as there are cores, from 4 to 64: those that first have recorded
/// 4096 times, or find a copy that another thread has left, until they end. All other threads share one copy, which they change by read-modify-write. So memory and the cost of reading do not
/// grow with the number of threads, and as many threads as can run at once still record without contention.
///
/// # Errors
/// [`SlabFull`] if `len` is zero or so many cells are not left in a row.
pub fn reserve_wide(len: usize) -> Result<WideRange, SlabFull> {
    CellRange::reserve(len)
}

/// How many cells are not reserved, of [`CELLS_MAX`] or, of wide ones, [`WIDE_CELLS_MAX`]. They need not lie in a row. A hint: others
/// reserve and give back meanwhile.
#[must_use]
pub fn free_cells(wide: bool) -> usize {
    let free = if wide {
        global::<true>().free_cells()
    } else {
        global::<false>().free_cells()
    };
    free as usize
}

/// How often cells were given back since the start, wrapping: if it is the same as at a reservation that failed, the next fails too.
#[must_use]
pub fn returns(wide: bool) -> u32 {
    if wide {
        global::<true>().returns()
    } else {
        global::<false>().returns()
    }
}

/// How many chunks of cells were made so far: the most threads that had one at once, and the shared one, times the
/// steps in which they grew.
#[must_use]
pub fn chunk_count() -> usize {
    global::<false>().chunk_count()
}

/// [`chunk_count`] of wide cells, with the shared copies.
#[must_use]
pub fn wide_chunk_count() -> usize {
    global::<true>().chunk_count()
}

/// Neighbouring cells, one copy per thread. They are given back when this is dropped.
///
/// `WIDE` says which kind they are: [`reserve`] or [`reserve_wide`].
#[derive(Debug)]
pub struct CellRange<const WIDE: bool = false> {
    start: u32,
    len: u32,
}

/// Neighbouring wide cells; see [`reserve_wide`].
pub type WideRange = CellRange<true>;

impl<const WIDE: bool> CellRange<WIDE> {
    fn reserve(len: usize) -> Result<Self, SlabFull> {
        let cells_max = if WIDE { WIDE_CELLS_MAX } else { CELLS_MAX };
        let full = SlabFull {
            requested: len,
            cells_max,
        };
        let len = u32::try_from(len).ok().filter(|len| *len > 0).ok_or(full)?;
        let start = global::<WIDE>().reserve(len).ok_or(full)?;
        Ok(Self { start, len })
    }

    /// No cells: what is recorded is lost, and every sum is zero. For code that goes on when [`reserve`] fails.
    #[must_use]
    pub const fn detached() -> Self {
        Self {
            start: u32::MAX,
            len: 0,
        }
    }

    /// How many cells there are; zero for [`detached`](Self::detached) alone.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "only a detached range is empty"
    )]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Adds to one cell of this thread's copy. An offset beyond the last cell counts there.
    #[inline]
    pub fn add(&self, offset: usize, amount: u64) {
        self.record(|cells| cells.add(offset, amount));
    }

    /// Runs `record` with this thread's copy of the cells, for records that write several at once.
    ///
    /// Nothing is locked or borrowed meanwhile. `record` must not record to this range by other means: what
    /// it writes between a load and a store of [`Cells`] would be lost.
    #[inline]
    pub fn record(&self, record: impl FnOnce(Cells<'_>)) {
        if let Some(cells) = local::cells::<WIDE>(self.start, self.len()) {
            record(Cells {
                cells,
                is_shared: false,
            });
        } else {
            self.record_slow(record);
        }
    }

    #[cold]
    #[inline(never)]
    fn record_slow(&self, record: impl FnOnce(Cells<'_>)) {
        if let Some((cells, is_shared)) = local::cells_slow::<WIDE>(self.start, self.len) {
            record(Cells { cells, is_shared });
        }
    }

    /// A handle of four bytes on the first cell, to keep beside what else a hot path reads.
    ///
    /// The handle does not keep the cells: store this range beside it. After the range
    /// was dropped, what is recorded through the handle counts for the cells' next user.
    #[must_use]
    pub fn handle(&self) -> CellHandle<WIDE> {
        CellHandle { start: self.start }
    }

    /// The sum of one cell over all threads, wrapping; zero beyond the last cell.
    #[must_use]
    pub fn sum(&self, offset: usize) -> u64 {
        let mut sum = 0u64;
        self.for_each(offset, |value| sum = sum.wrapping_add(value));
        sum
    }

    /// The sum of one cell that was written with [`Cells::add_f64`].
    #[must_use]
    pub fn sum_f64(&self, offset: usize) -> f64 {
        let mut sum = 0.0;
        self.for_each(offset, |value| sum += f64::from_bits(value));
        sum
    }

    /// The largest value of one cell that was written with [`Cells::raise`]; zero if none was.
    #[must_use]
    pub fn max(&self, offset: usize) -> u64 {
        let mut max = 0;
        self.for_each(offset, |value| max = max.max(value));
        max
    }

    /// Takes the largest value of one cell that was written with [`Cells::raise_until_taken`] alone, and lets
    /// the cell start again at zero.
    ///
    /// Of all values raised to, the largest is returned by at least one call, and a value is not returned
    /// again unless it was raised to again. A thread that compares with the old value while it is being taken leaves its
    /// smaller value to be covered by the one taken.
    #[must_use]
    pub fn take_max(&self, offset: usize) -> u64 {
        let Some(offset) = self.valid_offset(offset) else {
            return 0;
        };
        global::<WIDE>().take_max(self.start + offset)
    }

    /// The sums of the first `out.len()` cells, wrapping, under one lock; zero beyond the last cell.
    pub fn sum_into(&self, out: &mut [u64]) {
        self.sum_from(0, out);
    }

    /// The sums of the cells from `offset` on, wrapping, under one lock; zero beyond the last cell.
    pub fn sum_from(&self, offset: usize, out: &mut [u64]) {
        let Some(offset) = self.valid_offset(offset) else {
            return out.fill(0);
        };
        let (own, beyond) = out.split_at_mut(out.len().min((self.len - offset) as usize));
        global::<WIDE>().sum_into(self.start + offset, own);
        beyond.fill(0);
    }

    fn for_each(&self, offset: usize, fold: impl FnMut(u64)) {
        if let Some(offset) = self.valid_offset(offset) {
            global::<WIDE>().for_each(self.start + offset, fold);
        }
    }

    fn valid_offset(&self, offset: usize) -> Option<u32> {
        u32::try_from(offset)
            .ok()
            .filter(|offset| *offset < self.len)
    }
}

impl<const WIDE: bool> Drop for CellRange<WIDE> {
    fn drop(&mut self) {
        if self.len > 0 {
            global::<WIDE>().unreserve(self.start, self.len);
        }
    }
}

/// The place of a [`CellRange`] without its ownership; see [`CellRange::handle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellHandle<const WIDE: bool = false> {
    start: u32,
}

impl CellHandle {
    /// Adds to the first cell of this thread's copy, wrapping.
    #[inline]
    pub fn add(self, amount: u64) {
        self.change(|value| value.wrapping_add(amount));
    }

    /// Adds to the first cell of this thread's copy, which holds the bits of an `f64`.
    #[inline]
    pub fn add_f64(self, amount: f64) {
        self.change(|value| (f64::from_bits(value) + amount).to_bits());
    }

    #[inline]
    fn change(self, change: impl Fn(u64) -> u64) {
        match local::cell(self.start) {
            Some(cell) => change_own(cell, change),
            None => self.change_slow(change),
        }
    }

    #[cold]
    #[inline(never)]
    fn change_slow(self, change: impl Fn(u64) -> u64) {
        match local::cell_slow(self.start) {
            Some((cell, false)) => change_own(cell, change),
            Some((cell, true)) => change_shared(cell, change),
            None => {}
        }
    }
}

impl CellHandle {
    /// Adds to the first cell of this thread's copy, wrapping, if this thread has that copy; otherwise says `false` and adds nothing:
    /// [`CellRange::add`] is then the way.
    #[inline]
    #[must_use]
    pub fn add_own(self, amount: u64) -> bool {
        self.change_own(|value| value.wrapping_add(amount))
    }

    /// The same of a cell that holds the bits of an `f64`.
    #[inline]
    #[must_use]
    pub fn add_f64_own(self, amount: f64) -> bool {
        self.change_own(|value| (f64::from_bits(value) + amount).to_bits())
    }

    #[inline]
    fn change_own(self, change: impl Fn(u64) -> u64) -> bool {
        local::cell(self.start)
            .map(|cell| change_own(cell, change))
            .is_some()
    }
}

impl<const WIDE: bool> CellHandle<WIDE> {
    /// Runs `record` with the first `len` cells of this thread's copy, if this thread has them; otherwise says `None` and
    /// runs nothing: [`CellRange::record`] is then the way. `len` is at most the range's. What the compiler knows of `len` saves
    /// bounds checks in `record`.
    #[inline]
    pub fn record_own<R>(self, len: usize, record: impl FnOnce(Cells<'_>) -> R) -> Option<R> {
        let cells = local::cells::<WIDE>(self.start, len)?;
        Some(record(Cells {
            cells,
            is_shared: false,
        }))
    }
}

/// One thread's copy of a [`CellRange`].
///
/// Each operation is a `Relaxed` load and a `Relaxed` store: no other thread writes here, and readers
/// need no more than that each value is one that was stored. An offset beyond the last cell means the last.
#[derive(Clone, Copy, Debug)]
pub struct Cells<'a> {
    cells: &'a [AtomicU64],
    /// Others write here too: this thread has no copy of its own.
    is_shared: bool,
}

impl Cells<'_> {
    /// Adds to a cell, wrapping.
    #[inline]
    pub fn add(self, offset: usize, amount: u64) {
        let Some(cell) = self.cell(offset) else {
            return;
        };
        if self.is_shared {
            local::add_shared(cell, amount);
        } else {
            change_own(cell, |value| value.wrapping_add(amount));
        }
    }

    /// Adds to a cell that holds the bits of an `f64`. Zero bits are `0.0`.
    #[inline]
    pub fn add_f64(self, offset: usize, amount: f64) {
        self.change(offset, |value| (f64::from_bits(value) + amount).to_bits());
    }

    /// Raises a cell to `at_least` if it is lower. For a minimum raise the complement, `!value`.
    #[inline]
    pub fn raise(self, offset: usize, at_least: u64) {
        self.change(offset, |value| value.max(at_least));
    }

    /// Raises a cell like [`raise`](Self::raise), for a reader that takes the value away with
    /// [`CellRange::take_max`]: a load, and a read-modify-write only when the cell is raised.
    #[inline]
    pub fn raise_until_taken(self, offset: usize, at_least: u64) {
        if let Some(cell) = self.cell(offset)
            && cell.load(Ordering::Relaxed) < at_least
        {
            // With the reader's swap in one order, so that each value is seen by a swap or left for the next.
            cell.fetch_max(at_least, Ordering::Relaxed);
        }
    }

    #[inline]
    fn cell(&self, offset: usize) -> Option<&AtomicU64> {
        self.cells.get(offset).or_else(|| self.cells.last())
    }

    #[inline]
    fn change(self, offset: usize, change: impl Fn(u64) -> u64) {
        let Some(cell) = self.cell(offset) else {
            return;
        };
        if self.is_shared {
            local::change_shared(cell, change);
        } else {
            local::change_own(cell, change);
        }
    }
}

/// So many cells are not left, or none were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlabFull {
    /// How many neighbouring cells were asked for.
    pub requested: usize,
    /// How many the process can have.
    pub cells_max: usize,
}

impl fmt::Display for SlabFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot reserve {} neighbouring cells: allowed are 1 to {} for the whole process, as far as they are \
             free; drop instruments that are no longer used, or give them fewer cells",
            self.requested, self.cells_max
        )
    }
}

impl std::error::Error for SlabFull {}
