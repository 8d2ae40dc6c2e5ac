//! Places that are handed out and taken back, and made when they are first needed.

use super::pending::CALLS_MAX;
use crate::primitive::{Mutex, Queue, mutant};
use std::iter;
use std::ops::Range;
use std::sync::OnceLock;

/// Places of the first chunk. Each further one doubles their number.
const FIRST: usize = if cfg!(perf_loom) { 1 } else { 64 };

/// A bounded number of places, each with an index. There are as many as were ever taken at once, rounded up to a power
/// of two from 64: a connection for a call now and then takes a few kilobytes, and one with many calls uses the same
/// few again while they are still in the caches.
#[derive(Debug)]
pub(super) struct Slots<T> {
    chunks: Box<[OnceLock<Chunk<T>>]>,
    places_max: usize,
    /// How many chunks there are. Changed under its lock, so that who walks through them after it was held sees all
    /// whose places were taken before.
    grown: Mutex<usize>,
}

#[derive(Debug)]
struct Chunk<T> {
    places: Box<[T]>,
    free: Queue<u16>,
}

impl<T: Default> Slots<T> {
    /// At most so many, at least 1 and at most [`CALLS_MAX`].
    pub(super) fn new(places_max: usize) -> Self {
        let places_max = places_max.clamp(1, CALLS_MAX);
        let slots = Self {
            chunks: (0..=chunk_of(places_max - 1))
                .map(|_| OnceLock::new())
                .collect(),
            places_max,
            grown: Mutex::new(0),
        };
        if let Some(index) = slots.grow() {
            slots.give_back(index);
        }
        slots
    }

    /// Takes a place; `None` if all are taken.
    #[inline]
    pub(super) fn take(&self) -> Option<u16> {
        self.take_made().or_else(|| self.grow())
    }

    #[inline]
    fn take_made(&self) -> Option<u16> {
        let made = self.chunks.iter().map_while(OnceLock::get);
        made.filter_map(|chunk| chunk.free.pop()).next()
    }

    /// Makes more places, and takes one of them.
    #[cold]
    fn grow(&self) -> Option<u16> {
        // All are there already: no need to wait for each other.
        if self.chunks.last()?.get().is_some() {
            return None;
        }
        let mut grown = self.grown.lock();
        // Another caller may have made places meanwhile, even the last ones.
        if let Some(index) = self.take_made() {
            return Some(index);
        }
        let chunk = self.chunks.get(*grown)?;
        let range = places_of(*grown, self.places_max);
        let first = u16::try_from(range.start).ok()?;
        let free = Queue::new(range.len());
        for index in range.clone().skip(1) {
            // There is room for all of them, and each fits.
            let _ = free.push(index as u16);
        }
        let places = iter::repeat_with(T::default).take(range.len()).collect();
        chunk.set(Chunk { places, free }).ok()?;
        *grown += 1;
        Some(first)
    }
}

impl<T> Slots<T> {
    /// The place of an index, if it was ever taken.
    #[inline]
    pub(super) fn get(&self, index: u16) -> Option<&T> {
        let chunk = chunk_of(index.into());
        let start = places_of(chunk, usize::MAX).start;
        let places = &self.chunks.get(chunk)?.get()?.places;
        places.get(usize::from(index) - start)
    }

    /// Gives back a place that was taken.
    #[inline]
    pub(super) fn give_back(&self, index: u16) {
        let chunk = self.chunks.get(chunk_of(index.into()));
        if let Some(chunk) = chunk.and_then(OnceLock::get) {
            // The queue has room for every index of the chunk.
            let _ = chunk.free.push(index);
        }
    }

    /// All places there are: those that were taken before, and perhaps later ones.
    pub(super) fn walk(&self) -> impl Iterator<Item = (u16, &T)> {
        let grown = if mutant::is("walk_without_lock") {
            self.chunks.iter().map_while(OnceLock::get).count()
        } else {
            *self.grown.lock()
        };
        let made = self.chunks.iter().take(grown).filter_map(OnceLock::get);
        (0..=u16::MAX).zip(made.flat_map(|chunk| chunk.places.iter()))
    }
}

/// In which chunk a place is: 64, 64, 128, 256 and so on, so that each begins at its own length.
#[inline]
fn chunk_of(index: usize) -> usize {
    match index.checked_ilog2() {
        Some(log) if index >= FIRST => (log - FIRST.ilog2()) as usize + 1,
        _ => 0,
    }
}

/// The places of a chunk.
#[inline]
fn places_of(chunk: usize, places_max: usize) -> Range<usize> {
    let start = match chunk {
        0 => 0,
        chunk => FIRST << (chunk - 1),
    };
    let end = FIRST << chunk;
    start..end.min(places_max)
}

#[cfg(all(test, not(perf_loom)))]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn chunks_follow_each_other() {
        let mut next = 0;
        for chunk in 0..11 {
            let places = places_of(chunk, usize::MAX);
            assert_eq!(places.start, next);
            assert!(places.clone().all(|index| chunk_of(index) == chunk));
            next = places.end;
        }
        assert_eq!(next, 65_536);
    }

    #[test]
    fn there_are_as_many_as_were_asked_for_and_no_more_than_were_used() {
        for places_max in [1, 2, 63, 64, 65, 100, 128, 129, 4096, 65_536, 70_000] {
            let slots: Slots<AtomicBool> = Slots::new(places_max);
            assert_eq!(slots.walk().count(), places_max.min(64));
            let all: HashSet<u16> = iter::from_fn(|| slots.take()).collect();
            assert_eq!(all.len(), places_max.min(65_536));
            for &index in &all {
                let place = slots.get(index).expect("it was taken");
                assert!(!place.swap(true, Ordering::Relaxed), "{index} twice");
            }
            let walked: HashSet<u16> = slots.walk().map(|(index, _)| index).collect();
            assert_eq!(walked, all);
            slots.give_back(0);
            assert_eq!((slots.take(), slots.take()), (Some(0), None));
        }
    }

    #[test]
    fn what_was_never_taken_is_not_there() {
        let slots: Slots<AtomicBool> = Slots::new(200);
        for index in [64, 127, 128, 199, 200, u16::MAX] {
            assert!(slots.get(index).is_none(), "{index}");
            slots.give_back(index);
        }
        assert_eq!(iter::from_fn(|| slots.take()).count(), 200);
        assert!(slots.get(199).is_some() && slots.get(200).is_none());
    }

    #[test]
    fn threads_that_need_more_at_once_get_different_ones() {
        let slots: Slots<AtomicBool> = Slots::new(1000);
        let take = || {
            let mut taken = 0;
            while let Some(index) = slots.take() {
                let place = slots.get(index).expect("it was taken");
                assert!(!place.swap(true, Ordering::Relaxed), "{index} twice");
                taken += 1;
            }
            taken
        };
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.map(|taken| taken.expect("no panics")).sum()
        });
        assert_eq!(taken, 1000);
    }
}
