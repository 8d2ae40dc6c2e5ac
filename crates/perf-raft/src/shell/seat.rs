//! Who drives a node: its own task, or a caller that found nobody driving.

use crate::primitive::{AtomicU32, Mutex, Ordering, mutant};

/// How a visit to a [`Seat`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(perf_loom), allow(unreachable_pub))]
pub enum Visit {
    /// There is nothing left to do.
    Done,
    /// There is more to do: whoever gets this sees to it that somebody comes soon.
    More,
    /// Another drives. It was told, and looks again before it leaves.
    Taken,
    /// There is nothing to drive, or no longer.
    Empty,
}

/// The place of the one who drives, with what is driven.
///
/// Whoever queued something comes here afterwards. The first takes the seat; for the others it is enough that the first looks once more before it
/// leaves. So what a lone caller wants is done by the caller itself, without a task being woken, and nothing queued is forgotten.
/// Modelled in `tests/loom.rs`.
#[derive(Debug)]
#[cfg_attr(not(perf_loom), allow(unreachable_pub))]
// On lines of its own: clients read what lies beside it while whoever drives writes here.
#[repr(align(128))]
pub struct Seat<D> {
    /// How many came since the seat was free, the one who took it included; 0 if it is free.
    knocks: AtomicU32,
    /// Locked by the one in the seat, so there is no waiting, and by [`take`](Self::take).
    driven: Mutex<Option<D>>,
}

#[cfg_attr(not(perf_loom), allow(unreachable_pub))]
impl<D> Seat<D> {
    /// A free seat with nothing to drive yet.
    pub fn empty() -> Self {
        Self {
            knocks: AtomicU32::new(0),
            driven: Mutex::new(None),
        }
    }

    /// Puts there what is driven from now on.
    pub fn fill(&self, driven: D) {
        *self.driven.lock() = Some(driven);
    }

    /// Takes away what is driven, as soon as nobody drives it. Not from within a turn.
    pub fn take(&self) -> Option<D> {
        self.driven.lock().take()
    }

    /// Takes the seat if it is free, and calls `turn` until that says that there is no more to do and nobody came meanwhile, but `turns_max` times at
    /// most.
    ///
    /// What was queued before is seen by a turn: coming is a release, and each turn begins with an acquire. May be called from within a turn, and finds the seat taken then.
    pub fn visit(&self, turns_max: u32, mut turn: impl FnMut(&mut D) -> bool) -> Visit {
        if self.knocks.fetch_add(1, Ordering::AcqRel) > 0 {
            return Visit::Taken;
        }
        for _ in 0..turns_max {
            let seen = self.knocks.load(Ordering::Acquire);
            let Some(more) = self.driven.lock().as_mut().map(&mut turn) else {
                self.knocks.store(0, Ordering::Release);
                return Visit::Empty;
            };
            if more {
                continue;
            }
            let left = self
                .knocks
                .compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Relaxed);
            if left.is_ok() {
                return Visit::Done;
            }
            if mutant::is("seat_forgets_knock") {
                self.knocks.store(0, Ordering::Release);
                return Visit::Done;
            }
        }
        self.knocks.store(0, Ordering::Release);
        Visit::More
    }
}
