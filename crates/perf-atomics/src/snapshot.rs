//! Tear-free publication of a small value to many readers.

use crate::cache_line::CacheLine;
use crate::primitive::{AtomicU64, Mutex, Ordering, fence, mutant, spin_loop};
use crate::words::{Cells, Words};
use std::fmt;

/// How many versions are kept: the current one and the last three.
///
/// A reader must try again only when the writers published this often while it read. One slot is
/// a plain seqlock, where a reader waits for a stalled writer; with two, a reader still meets
/// every second write; four measured as fast as two to read, and eight no faster.
#[cfg(not(perf_loom))]
const SLOTS: usize = 4;
/// So few that two publications already overtake a reader.
#[cfg(perf_loom)]
const SLOTS: usize = 2;

/// A small `Copy` value that is published as a whole and read without waiting.
///
/// Readers never see a mixture of two values, never write to shared memory, and never wait for a
/// writer, not even for one that was stopped in the middle of a write: it writes into another slot than
/// the one they read. Only when the value is published four times during one read is that read repeated.
///
/// A read costs a load of the version, of the words, and of the slot's stamp. Writers take turns
/// behind a lock. Memory: a version line and four slots of `8 + 8 * words` bytes, each
/// on cache lines of its own.
///
/// A reader that sees a value also sees everything its publisher's thread wrote before publishing
/// (release / acquire), and never sees an older value after a newer one.
///
/// ```
/// use perf_atomics::{RaftStatus, Role, Snapshot};
///
/// let status = Snapshot::new(RaftStatus::default());
/// std::thread::scope(|scope| {
///     scope.spawn(|| status.update(|s| (s.role, s.term) = (Role::Leader, 7)));
///     scope.spawn(|| {
///         let seen = status.read();
///         // Either nothing or both, never a leader of term 0.
///         assert_eq!(seen.role == Role::Leader, seen.term == 7);
///     });
/// });
/// ```
pub struct Snapshot<T: Words> {
    /// The version that readers read: `slots[version % SLOTS]` holds it.
    version: CacheLine<AtomicU64>,
    slots: [CacheLine<Slot<T>>; SLOTS],
    writer: CacheLine<Mutex<()>>,
}

struct Slot<T: Words> {
    /// The version that was last begun in this slot.
    stamp: AtomicU64,
    words: <T::Array as Cells>::Cells,
}

impl<T: Words> Snapshot<T> {
    /// Publishes `value` as version 0.
    #[must_use]
    pub fn new(value: T) -> Self {
        let slots: [CacheLine<Slot<T>>; SLOTS] = std::array::from_fn(|i| {
            // A slot that was never written carries no version that `version` could name before it is.
            let stamp = if i == 0 { 0 } else { u64::MAX };
            CacheLine(Slot {
                stamp: AtomicU64::new(stamp),
                words: T::Array::new_cells(),
            })
        });
        value.to_words().store(&slots[0].0.words);
        Self {
            version: CacheLine(AtomicU64::new(0)),
            slots,
            writer: CacheLine(Mutex::new(())),
        }
    }

    /// The value last published.
    ///
    /// Lock-free; repeats itself only if the value was published four times meanwhile.
    #[inline]
    #[must_use]
    pub fn read(&self) -> T {
        self.read_versioned().1
    }

    /// The value last published, and how often one was published before it.
    #[inline]
    #[must_use]
    pub fn read_versioned(&self) -> (u64, T) {
        loop {
            // Acquire: the words of this version, written before `version` was, are visible.
            let version = self.version.0.load(Ordering::Acquire);
            let slot = &self.slots[slot_of(version)].0;
            let words = T::Array::load(&slot.words);
            // If one of those loads saw a word of a later version, this fence and the writer's
            // make that version's stamp visible to the load below.
            if !mutant::is("snapshot_no_acquire_fence") {
                fence(Ordering::Acquire);
            }
            if slot.stamp.load(Ordering::Relaxed) == version {
                return (version, T::from_words(words));
            }
            spin_loop();
        }
    }

    /// How often a value was published. One load: the cheapest way to see that nothing changed.
    #[inline]
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.0.load(Ordering::Acquire)
    }

    /// Publishes `value`. Waits for other writers, not for readers.
    pub fn publish(&self, value: T) {
        let words = value.to_words();
        let _turn = self.writer.0.lock();
        self.write(words, || ());
    }

    /// Publishes what `change` makes of the current value, and returns that.
    ///
    /// `change` runs outside the writers' lock, so it may be slow, panic (nothing is published then) or
    /// use this snapshot itself. It runs again if another value was published meanwhile.
    pub fn update(&self, mut change: impl FnMut(&mut T)) -> T {
        loop {
            let (version, mut value) = self.read_versioned();
            change(&mut value);
            let words = value.to_words();
            let _turn = self.writer.0.lock();
            if self.version.0.load(Ordering::Relaxed) == version {
                self.write(words, || ());
                return value;
            }
        }
    }

    /// Writes the next version. The caller holds `writer`. `midway` runs when the slot is marked and
    /// nothing else is done yet: tests stall or interleave there.
    #[inline]
    fn write(&self, words: T::Array, midway: impl FnOnce()) {
        // Relaxed: only holders of `writer` write it, so the lock has ordered it.
        let next = self.version.0.load(Ordering::Relaxed).wrapping_add(1);
        let slot = &self.slots[slot_of(next)].0;
        slot.stamp.store(next, Ordering::Relaxed);
        midway();
        // Release: no word below may become visible before the stamp above does. Pairs with the
        // fence of the readers.
        if !mutant::is("snapshot_no_release_fence") {
            fence(Ordering::Release);
        }
        words.store(&slot.words);
        // Release: whoever sees this version sees its words.
        self.version.0.store(next, Ordering::Release);
    }
}

#[inline]
const fn slot_of(version: u64) -> usize {
    (version % SLOTS as u64) as usize
}

impl<T: Words + Default> Default for Snapshot<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: Words + fmt::Debug> fmt::Debug for Snapshot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (version, value) = self.read_versioned();
        f.debug_struct("Snapshot")
            .field("version", &version)
            .field("value", &value)
            .finish()
    }
}

#[cfg(all(test, not(perf_loom)))]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_reader_ends_while_a_writer_is_stalled_in_the_middle() {
        let snapshot = Snapshot::new([1u64, 1]);
        let (stalled, is_stalled) = mpsc::channel();
        let (resume, may_resume) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let snapshot = &snapshot;
            scope.spawn(move || {
                let _turn = snapshot.writer.0.lock();
                snapshot.write([2, 2], || {
                    stalled.send(()).expect("the test waits");
                    may_resume.recv().expect("the test resumes the writer");
                });
            });
            is_stalled.recv().expect("the writer reaches the middle");
            // The writer stays where it is until all of these reads have returned.
            for _ in 0..1000 {
                assert_eq!(snapshot.read(), [1, 1]);
            }
            resume.send(()).expect("the writer waits");
        });
        assert_eq!(snapshot.read(), [2, 2]);
    }

    #[test]
    fn a_writer_that_panics_in_the_middle_leaves_the_snapshot_usable() {
        let snapshot = Snapshot::new([1u64, 1]);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _turn = snapshot.writer.0.lock();
            snapshot.write([2, 2], || panic!("planned"));
        }));
        assert!(outcome.is_err());
        assert_eq!(snapshot.read(), [1, 1]);
        snapshot.publish([3, 3]);
        assert_eq!(snapshot.read(), [3, 3]);
        assert_eq!(snapshot.version(), 1);
    }
}
