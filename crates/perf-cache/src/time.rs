//! The time that decides about expiry: monotonic, coarse where that is safe, stepped by hand in tests.

use parking_lot::Mutex;
use perf_atomics::clock::{CoarseClock, CoarseInstant, LAG_MAX, RESOLUTION, Updater};
use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Where a cache gets its time from.
///
/// [`now`](Self::now) is asked at each read and may be behind. A value whose end is further away than
/// [`lag_max`](Self::lag_max) is served by it; nearer to its end [`precise`](Self::precise) decides. So no value outlives its TTL
/// as long as the lag keeps to its bound.
pub trait Time: Send + Sync + 'static {
    /// The time, at most [`lag_max`](Self::lag_max) behind.
    fn now(&self) -> CoarseInstant;

    /// The same if it can be had at once, for the hot path; it takes the long way when not.
    #[inline]
    fn at_hand(&self) -> Option<CoarseInstant> {
        Some(self.now())
    }

    /// The time, exactly.
    fn precise(&self) -> CoarseInstant;

    /// How far [`now`](Self::now) may be behind.
    fn lag_max(&self) -> Duration;

    /// Called when a cache is built: what the time needs to run.
    fn start(&self) {}
}

static CLOCK: CoarseClock = CoarseClock::new();

/// A thread makes sure once in so many reads that the clock does not stand still.
const READS_UNCHECKED: u32 = 64;

thread_local! {
    /// Reads until the next look after the clock.
    static UNCHECKED: Cell<u32> = const { Cell::new(0) };
}

#[cold]
#[inline(never)]
fn check_clock() {
    UNCHECKED.with(|left| left.set(READS_UNCHECKED - 1));
    CLOCK.check(CoarseInstant::precise(), LAG_MAX);
}

static UPDATER: Mutex<Option<Updater<&'static CoarseClock>>> = Mutex::new(None);

/// The coarse clock of all caches of the process: a read is one load.
///
/// The first cache that is built starts the clock's two threads, which wake a thousand and some forty times a second. When they
/// stall, reads ask `Instant`; if the system gives no threads, they always do. [`PreciseTime`] does without them.
///
/// **`fork`.** The child has the caches and none of these threads. Each thread looks once in 64 reads whether the clock stands still;
/// if so, all reads ask `Instant` from then on. Refreshes in the background and a manager's cleanup do not run in the child; a
/// lock that another thread held when the process forked stays locked, as with any library. So fork before threads use the caches, or `exec`.
#[derive(Clone, Copy, Debug, Default)]
pub struct CoarseTime;

impl Time for CoarseTime {
    #[inline]
    fn now(&self) -> CoarseInstant {
        self.at_hand().unwrap_or_else(CoarseInstant::precise)
    }

    #[inline]
    fn at_hand(&self) -> Option<CoarseInstant> {
        // A cell without a destructor can always be reached.
        let is_due = UNCHECKED.with(|left| {
            left.set(left.get().wrapping_sub(1));
            left.get() == u32::MAX
        });
        if is_due {
            check_clock();
        }
        CLOCK.written()
    }

    fn precise(&self) -> CoarseInstant {
        CoarseInstant::precise()
    }

    #[inline]
    fn lag_max(&self) -> Duration {
        LAG_MAX
    }

    fn start(&self) {
        let mut updater = UPDATER.lock();
        if updater.is_none() && !cfg!(perf_loom) {
            // Without an updater the clock asks `Instant`: slower and right.
            *updater = Updater::start(&CLOCK, RESOLUTION, LAG_MAX).ok();
        }
    }
}

/// `Instant` at each read: no threads, some 20 to 40 ns.
#[derive(Clone, Copy, Debug, Default)]
pub struct PreciseTime;

impl Time for PreciseTime {
    fn now(&self) -> CoarseInstant {
        CoarseInstant::precise()
    }

    fn precise(&self) -> CoarseInstant {
        CoarseInstant::precise()
    }

    fn lag_max(&self) -> Duration {
        Duration::ZERO
    }
}

/// A time that stands until it is advanced. Clones are the same time.
///
/// ```
/// use perf_cache::{ManualTime, TtlCache};
/// use std::time::Duration;
///
/// let time = ManualTime::new();
/// let cache: TtlCache<u64, &str, _, ManualTime> = TtlCache::builder(100)
///     .ttl(Duration::from_secs(60))
///     .time(time.clone())
///     .build()?;
/// cache.insert(1, "one");
/// time.advance(Duration::from_secs(59));
/// assert_eq!(cache.get(&1), Some("one"));
/// time.advance(Duration::from_secs(1));
/// assert_eq!(cache.get(&1), None);
/// # Ok::<(), perf_cache::CacheError>(())
/// ```
#[derive(Clone, Default)]
pub struct ManualTime {
    shared: Arc<Manual>,
}

#[derive(Default)]
struct Manual {
    /// Relaxed: the number is all there is to see.
    precise: AtomicU64,
    /// What a stalled updater wrote last, if it stalls.
    stalled_at: AtomicU64,
    lag_max: AtomicU64,
}

impl ManualTime {
    /// A time at its beginning, without lag.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A time whose coarse reading may be up to `lag_max` behind: it is as far behind as it can be.
    #[must_use]
    pub fn with_lag(lag_max: Duration) -> Self {
        let time = Self::default();
        let nanos = u64::try_from(lag_max.as_nanos()).unwrap_or(u64::MAX);
        time.shared.lag_max.store(nanos, Ordering::Relaxed);
        time
    }

    /// Lets time pass; saturates at the end of time.
    pub fn advance(&self, by: Duration) {
        let now = self.precise() + by;
        let precise = now.as_nanos();
        self.shared.precise.store(precise, Ordering::Relaxed);
        let lag = self.shared.lag_max.load(Ordering::Relaxed);
        self.shared
            .stalled_at
            .store(precise.saturating_sub(lag), Ordering::Relaxed);
    }
}

impl Time for ManualTime {
    fn now(&self) -> CoarseInstant {
        CoarseInstant::from_nanos(self.shared.stalled_at.load(Ordering::Relaxed))
    }

    fn precise(&self) -> CoarseInstant {
        CoarseInstant::from_nanos(self.shared.precise.load(Ordering::Relaxed))
    }

    fn lag_max(&self) -> Duration {
        Duration::from_nanos(self.shared.lag_max.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for ManualTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ManualTime").field(&self.precise()).finish()
    }
}
