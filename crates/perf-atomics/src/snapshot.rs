//! Tear-free publication of a small value to many readers.

use crate::cache_line::CacheLine;
use crate::primitive::{AtomicU64, Mutex, Ordering, fence, mutant, spin_loop};
use crate::words::{Cells, Words};
use std::fmt;

/// A small `Copy` value that is published as a whole and read without waiting.
///
/// Readers never see a mixture of two values, never write to shared memory, and never wait for a
/// writer, not even for one that was stopped in the middle of a write.
///
/// The value is kept twice. A read normally takes it from the front copy, a cache line that begins with the
/// number of the version last ended there and ends with the number of the version last begun: when
/// the two are equal, what was read between them is whole. Otherwise a writer is at work, and the read takes the
/// value from the back, where the writer has two slots in turn and so leaves the current one alone. Only when
/// the value is published twice during one read is that read repeated.
///
/// | | cost |
/// |---|---|
/// | [`read`](Self::read) | a load per word and two more, from one cache line up to 6 words; twice that beside a writer |
/// | [`publish`](Self::publish) | a lock against other writers, and two stores per word |
/// | memory | 5 cache line pairs up to 14 words |
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
    front: CacheLine<Copy<T>>,
    back: [CacheLine<Copy<T>>; 2],
    /// The version that is whole in `back[version % 2]`.
    back_version: CacheLine<AtomicU64>,
    writer: CacheLine<Mutex<()>>,
}

/// One copy of the value, whole when the two versions are equal.
#[repr(C)]
struct Copy<T: Words> {
    /// The version last ended here.
    ended: AtomicU64,
    words: <T::Array as Cells>::Cells,
    /// The version last begun here.
    begun: AtomicU64,
}

impl<T: Words> Copy<T> {
    fn new(value: T) -> CacheLine<Self> {
        let words = T::Array::new_cells();
        value.to_words().store(&words);
        CacheLine(Self {
            ended: AtomicU64::new(0),
            words,
            begun: AtomicU64::new(0),
        })
    }

    /// The copy with its version, if it is whole.
    #[inline]
    fn read(&self) -> Option<(u64, T)> {
        // Acquire: the words of this version, written before `ended`, are visible.
        let version = self.ended.load(Ordering::Acquire);
        let words = T::Array::load(&self.words);
        // If one of those loads saw a word of a later version, this fence and the writer's make it
        // visible below that the later version was begun.
        if !mutant::is("snapshot_no_acquire_fence") {
            fence(Ordering::Acquire);
        }
        let is_whole = self.begun.load(Ordering::Relaxed) == version;
        is_whole.then(|| (version, T::from_words(words)))
    }

    fn begin(&self, version: u64) {
        self.begun.store(version, Ordering::Relaxed);
        // Release: no word that is written from here on may become visible before `begun` does. Pairs
        // with the fence of the readers.
        if !mutant::is("snapshot_no_release_fence") {
            fence(Ordering::Release);
        }
    }

    fn end(&self, version: u64, words: T::Array) {
        words.store(&self.words);
        // Release: whoever sees this version sees its words.
        self.ended.store(version, Ordering::Release);
    }
}

impl<T: Words> Snapshot<T> {
    /// Publishes `value` as version 0.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self {
            front: Copy::new(value),
            back: [Copy::new(value), Copy::new(value)],
            back_version: CacheLine(AtomicU64::new(0)),
            writer: CacheLine(Mutex::new(())),
        }
    }

    /// The value last published.
    ///
    /// Lock-free; repeats itself only if the value was published twice meanwhile.
    #[inline]
    #[must_use]
    pub fn read(&self) -> T {
        self.read_versioned().1
    }

    /// The value last published, and how often one was published before it.
    #[inline]
    #[must_use]
    pub fn read_versioned(&self) -> (u64, T) {
        match self.front.0.read() {
            Some(whole) => whole,
            None => self.read_beside_a_writer(),
        }
    }

    #[cold]
    #[inline(never)]
    fn read_beside_a_writer(&self) -> (u64, T) {
        loop {
            // Acquire: the version's words in the back are visible, and so is that the front has begun it. So
            // no later read of this thread takes an older version from there.
            let version = self.back_version.0.load(Ordering::Acquire);
            match self.back[place_of(version)].0.read() {
                Some(whole) if whole.0 == version => return whole,
                // Overtaken. Even if a later version is whole there already, `back_version` does not say so yet,
                // and this thread's next read could take the one between from the other slot.
                _ => {}
            }
            spin_loop();
            if let Some(whole) = self.front.0.read() {
                return whole;
            }
        }
    }

    /// How often a value was published. One load: the cheapest way to see that nothing changed.
    #[inline]
    #[must_use]
    pub fn version(&self) -> u64 {
        self.back_version.0.load(Ordering::Acquire)
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
    /// use this snapshot itself. It runs again if another value was published meanwhile: a change that always takes longer than the pause
    /// between two publications does not end. Do slow work before.
    pub fn update(&self, mut change: impl FnMut(&mut T)) -> T {
        loop {
            let (version, mut value) = self.read_versioned();
            change(&mut value);
            let words = value.to_words();
            let _turn = self.writer.0.lock();
            if self.back_version.0.load(Ordering::Relaxed) == version {
                self.write(words, || ());
                return value;
            }
        }
    }

    /// Writes the next version. The caller holds `writer`. `midway` runs when both copies are begun and
    /// nothing is written yet: tests stop the writer there.
    #[inline]
    fn write(&self, words: T::Array, midway: impl FnOnce()) {
        // Relaxed: only holders of `writer` write it, so the lock has ordered it.
        let next = self.back_version.0.load(Ordering::Relaxed).wrapping_add(1);
        let (front, back) = (&self.front.0, &self.back[place_of(next)].0);
        // The front is begun before the back is published: a reader that took this version from the back
        // finds the front begun, and cannot take the version before from there.
        if !mutant::is("snapshot_front_begun_late") {
            front.begin(next);
        }
        back.begin(next);
        midway();
        back.end(next, words);
        self.back_version.0.store(next, Ordering::Release);
        if mutant::is("snapshot_front_begun_late") {
            front.begin(next);
        }
        front.end(next, words);
    }
}

#[inline]
const fn place_of(version: u64) -> usize {
    (version % 2) as usize
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
