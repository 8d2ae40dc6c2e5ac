//! A coarse monotonic clock: a read is one load.
//!
//! `Instant::now` costs some 20 to 40 ns, which is more than the look-up whose expiry it decides. Here a thread
//! writes the time down every so often and readers load it. The price is lag, and lag must be bounded even
//! when that thread does not run:
//!
//! * A second thread, the watch, looks at the clock; when it finds the time older than the bound, it
//!   takes it away, and every read asks `Instant` until the updater is back.
//! * Without an updater (none started, or it was stopped) every read asks `Instant`.
//! * A thread that has read `Instant` anyway can call [`CoarseClock::check`] and do the watch's work at once.
//!
//! So the time read is behind by at most `lag_max`, plus the time that the watch itself is kept from running. A
//! process that was stopped as a whole (`SIGSTOP`, a paused VM) may read the old time until the watch
//! has run again; so it would if it had been stopped between asking `Instant` and using the answer.
//!
//! After `fork` the child has the clock's word, and neither the updater nor the watch. Three ways lead out of it: the child calls
//! [`CoarseClock::check_process`], which finds the updater gone and makes all reads ask `Instant`; it starts an [`Updater`] of its own, which
//! takes the clock over; or it reads by [`CoarseClock::witnessed`], which finds a clock that stands still.
//!
//! ```
//! use perf_atomics::clock::{self, CoarseClock, Updater};
//!
//! static CLOCK: CoarseClock = CoarseClock::new();
//!
//! let updater = Updater::start(&CLOCK, clock::RESOLUTION, clock::LAG_MAX)?;
//! let begin = CLOCK.now();
//! assert!(CLOCK.now().duration_since(begin) < std::time::Duration::from_secs(3600));
//! drop(updater); // from here on reads ask `Instant`
//! # Ok::<(), clock::ClockError>(())
//! ```

use crate::primitive::plain::{AtomicU64, Ordering};
use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::{Add, Deref};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the time is written down, unless said otherwise: a thousand wake-ups a second cost
/// well under 1 % of a core, and expiry times of a second are then exact to a thousandth.
pub const RESOLUTION: Duration = Duration::from_millis(1);

/// How far the clock may be behind, unless said otherwise: room for the updater to lose a few
/// scheduler ticks (4 to 10 ms each on common kernels) without the fall-back.
pub const LAG_MAX: Duration = Duration::from_millis(50);

/// The limits of a resolution. Shorter ones are beyond what a sleeping thread keeps to; with longer ones
/// the fall-back is the better clock.
pub const RESOLUTION_LIMITS: (Duration, Duration) =
    (Duration::from_micros(100), Duration::from_secs(1));

/// Nanoseconds since the first time this process asked a clock of this module.
///
/// Comparable across all clocks of this module. Differences saturate at zero: when an updater comes back, the
/// time may step back by up to its lag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoarseInstant(u64);

impl CoarseInstant {
    /// The time by `Instant`: exact, and as dear.
    #[must_use]
    pub fn precise() -> Self {
        static ANCHOR: OnceLock<Instant> = OnceLock::new();
        let elapsed = ANCHOR.get_or_init(Instant::now).elapsed();
        // 584 years fit. One more, because zero means "no time" in the clock's word.
        Self(
            u64::try_from(elapsed.as_nanos())
                .unwrap_or(u64::MAX - 1)
                .saturating_add(1),
        )
    }

    /// Nanoseconds since the first time this process asked a clock of this module.
    #[inline]
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time of [`as_nanos`](Self::as_nanos).
    #[inline]
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// How long after `earlier` this is; zero if it is not.
    #[inline]
    #[must_use]
    pub const fn duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for CoarseInstant {
    type Output = Self;

    /// Saturates at the end of time, 584 years from the start.
    #[inline]
    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

/// No process has this id.
const NO_PROCESS: u32 = 0;

/// A clock that an [`Updater`] keeps.
#[derive(Debug, Default)]
pub struct CoarseClock {
    /// The time last written down; zero if it may not be used.
    ///
    /// Relaxed everywhere: the number is all there is to see, and one location's values are seen in
    /// their order.
    nanos: AtomicU64,
    /// The process whose updater is at work; zero if there is none.
    keeper: AtomicU32,
}

impl CoarseClock {
    /// A clock without an updater: reads ask `Instant`.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            nanos: AtomicU64::new(0),
            keeper: AtomicU32::new(NO_PROCESS),
        }
    }

    /// The time: one load while the updater keeps up, `Instant` otherwise.
    #[inline]
    #[must_use]
    pub fn now(&self) -> CoarseInstant {
        match self.nanos.load(Ordering::Relaxed) {
            0 => fall_back(),
            nanos => CoarseInstant(nanos),
        }
    }

    /// The time by one load; `None` while [`now`](Self::now) would ask `Instant`. For a hot path that has another way to go then.
    #[inline]
    #[must_use]
    pub fn written(&self) -> Option<CoarseInstant> {
        match self.nanos.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(CoarseInstant(nanos)),
        }
    }

    /// The time as [`written`](Self::written) has it, by a thread that also looks after the clock: one load and a comparison.
    ///
    /// After `fork` the child has the clock's word, and neither the updater nor the watch. Here the reader finds that out itself: it asks
    /// `Instant` each time that it sees another time written, and of reads that see the same one at the 1st, 3rd, 7th and so on, at
    /// least once in [`UNWITNESSED_MAX`] reads. So a clock that stands still is taken away after at most so many reads of a thread, and from
    /// then on all reads of the process ask `Instant`.
    #[inline]
    #[must_use]
    pub fn witnessed(&self, witness: &Witness, lag_max: Duration) -> Option<CoarseInstant> {
        let nanos = self.nanos.load(Ordering::Relaxed);
        let left = witness.left.get();
        if nanos == witness.last.get() && left > 1 {
            witness.left.set(left - 1);
            return Some(CoarseInstant(nanos));
        }
        self.look(witness, nanos, lag_max)
    }

    #[cold]
    fn look(&self, witness: &Witness, nanos: u64, lag_max: Duration) -> Option<CoarseInstant> {
        if nanos == 0 {
            return None;
        }
        let pause = if nanos == witness.last.get() {
            (witness.pause.get() * 2).min(UNWITNESSED_MAX)
        } else {
            1
        };
        witness.last.set(nanos);
        witness.pause.set(pause);
        witness.left.set(pause);
        self.check(CoarseInstant::precise(), lag_max);
        self.written()
    }

    /// Whether reads are one load now, and do not ask `Instant`.
    #[must_use]
    pub fn is_coarse(&self) -> bool {
        self.nanos.load(Ordering::Relaxed) != 0
    }

    /// Takes the written time away if it is more than `lag_max` behind `precise`; returns whether it was.
    ///
    /// The updater brings it back the next time it runs.
    pub fn check(&self, precise: CoarseInstant, lag_max: Duration) -> bool {
        let written = self.nanos.load(Ordering::Relaxed);
        let is_stale = written != 0 && precise.duration_since(CoarseInstant(written)) > lag_max;
        // Compare-and-swap: an updater that has just come back is not undone.
        is_stale
            && self
                .nanos
                .compare_exchange(written, 0, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Takes the written time away if the updater was left behind in another process, as after `fork`; returns whether it was.
    ///
    /// Call it first thing in a forked child. From then on reads ask `Instant`, until an [`Updater`] is started there. One system call.
    pub fn check_process(&self) -> bool {
        let keeper = self.keeper.load(Ordering::Acquire);
        let is_gone = keeper != NO_PROCESS && keeper != std::process::id();
        if is_gone {
            self.nanos.store(0, Ordering::Relaxed);
        }
        is_gone
    }

    /// Writes the time down.
    fn tick(&self) {
        self.nanos
            .store(CoarseInstant::precise().0, Ordering::Relaxed);
    }
}

/// At least one of so many reads of the same time by a [`Witness`] asks `Instant`.
pub const UNWITNESSED_MAX: u32 = 64;

/// What one thread remembers of a clock that it reads by [`CoarseClock::witnessed`].
#[derive(Debug, Default)]
pub struct Witness {
    last: Cell<u64>,
    /// Reads of the same time until the next look, and how many there were between the last two looks.
    left: Cell<u32>,
    pause: Cell<u32>,
}

impl Witness {
    /// One that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            last: Cell::new(0),
            left: Cell::new(0),
            pause: Cell::new(0),
        }
    }
}

#[cold]
fn fall_back() -> CoarseInstant {
    CoarseInstant::precise()
}

/// Keeps a [`CoarseClock`] until it is dropped: two threads, the updater and the watch.
#[derive(Debug)]
pub struct Updater<C: Deref<Target = CoarseClock>> {
    clock: C,
    is_stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Where the threads are.
    process: u32,
}

impl<C> Updater<C>
where
    C: Deref<Target = CoarseClock> + Clone + Send + 'static,
{
    /// Starts to keep `clock`, a `&'static` or an `Arc`.
    ///
    /// # Errors
    /// [`ClockError`] if another updater of this process keeps it, the times are out of their limits, or the system gives no
    /// thread. Reads then go on to ask `Instant`.
    pub fn start(clock: C, resolution: Duration, lag_max: Duration) -> Result<Self, ClockError> {
        let (least, most) = RESOLUTION_LIMITS;
        if resolution < least || resolution > most {
            return Err(ClockError::Resolution {
                requested: resolution,
            });
        }
        if lag_max < resolution * 2 {
            return Err(ClockError::LagMax {
                requested: lag_max,
                resolution,
            });
        }
        let process = std::process::id();
        let keeper = clock.keeper.load(Ordering::Acquire);
        // The updater of another process was left behind by a fork: of those who take over, one succeeds.
        let is_free = keeper != process
            && clock
                .keeper
                .compare_exchange(keeper, process, Ordering::AcqRel, Ordering::Acquire)
                .is_ok();
        if !is_free {
            return Err(ClockError::AlreadyKept);
        }
        // From here on dropping `updater` undoes everything.
        let is_stopping = Arc::new(AtomicBool::new(false));
        let mut updater = Self {
            clock,
            is_stopping,
            threads: Vec::with_capacity(2),
            process,
        };
        updater.clock.tick();
        updater.spawn("perf-clock", resolution, CoarseClock::tick)?;
        updater.watch(lag_max)?;
        Ok(updater)
    }

    /// Starts the watch. It looks twice per `lag_max` and allows half of it: together no more than the whole.
    fn watch(&mut self, lag_max: Duration) -> Result<(), ClockError> {
        self.spawn("perf-clock-watch", lag_max / 2, move |clock| {
            clock.check(CoarseInstant::precise(), lag_max / 2);
        })
    }

    fn spawn(
        &mut self,
        name: &str,
        period: Duration,
        work: impl Fn(&CoarseClock) + Send + 'static,
    ) -> Result<(), ClockError> {
        let clock = self.clock.clone();
        let is_stopping = Arc::clone(&self.is_stopping);
        let run = move || {
            while !is_stopping.load(Ordering::Acquire) {
                work(&clock);
                std::thread::park_timeout(period);
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        self.threads.push(thread.map_err(ClockError::Spawn)?);
        Ok(())
    }
}

impl<C: Deref<Target = CoarseClock>> Drop for Updater<C> {
    fn drop(&mut self) {
        let is_forked = self.process != std::process::id();
        if is_forked {
            // The threads stayed in the parent: there is nothing to wait for, and the handles mean nothing here.
            self.threads.drain(..).for_each(std::mem::forget);
            self.clock.check_process();
            return;
        }
        self.is_stopping.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // Their work cannot panic; and if it did, there would be nothing to do about it here.
            let _ = thread.join();
        }
        // After the join: no tick can come and leave a time behind that nobody renews.
        self.clock.nanos.store(0, Ordering::Relaxed);
        self.clock.keeper.store(NO_PROCESS, Ordering::Release);
    }
}

/// Why a clock cannot be kept.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClockError {
    /// The resolution is out of [`RESOLUTION_LIMITS`].
    Resolution {
        /// What was asked for.
        requested: Duration,
    },
    /// The greatest lag is less than two periods of the updater.
    LagMax {
        /// What was asked for.
        requested: Duration,
        /// The resolution asked for with it.
        resolution: Duration,
    },
    /// Another updater keeps this clock.
    AlreadyKept,
    /// The system gave no thread.
    Spawn(io::Error),
}

impl fmt::Display for ClockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolution { requested } => {
                let (least, most) = RESOLUTION_LIMITS;
                write!(
                    f,
                    "clock resolution of {requested:?}: allowed are {least:?} to {most:?}"
                )
            }
            Self::LagMax {
                requested,
                resolution,
            } => write!(
                f,
                "clock lag of at most {requested:?}: with a resolution of {resolution:?} it must be {:?} or more",
                *resolution * 2
            ),
            Self::AlreadyKept => f.write_str(
                "another updater keeps this clock: drop that one first, or use the clock as it is",
            ),
            Self::Spawn(error) => write!(f, "no thread for the clock's updater: {error}"),
        }
    }
}

impl std::error::Error for ClockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Spawn(error) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stalled_updater_is_found_and_one_that_returns_is_used_again() {
        let clock = CoarseClock::new();
        clock.tick();
        assert!(clock.is_coarse());
        let written = clock.now();
        assert_eq!(clock.written(), Some(written));

        // The updater stops here. Within the bound nothing happens ...
        assert!(!clock.check(written + LAG_MAX, LAG_MAX));
        assert_eq!(clock.now(), written);
        // ... past it the written time is gone, and reads ask `Instant`, which goes on.
        assert!(clock.check(written + LAG_MAX + Duration::from_nanos(1), LAG_MAX));
        assert!(!clock.is_coarse());
        assert_eq!(clock.written(), None);
        let before = CoarseInstant::precise();
        assert!(clock.now() >= before);
        // A second look finds nothing more to do.
        assert!(!clock.check(written + LAG_MAX * 2, LAG_MAX));

        clock.tick();
        assert!(clock.is_coarse());
    }

    #[test]
    fn a_reader_takes_away_a_time_that_stands_still_as_after_a_fork() {
        for busy in [0, 1, 2, 3, 10, 100, 1000] {
            let (clock, witness) = (CoarseClock::new(), Witness::new());
            clock.tick();
            // Before the fork: the clock is within its bound, however often it is read.
            for _ in 0..busy {
                assert!(clock.witnessed(&witness, Duration::MAX).is_some());
            }
            // After it: any time is too long ago, and nothing renews it.
            let is_served = |_: &u32| clock.witnessed(&witness, Duration::ZERO).is_some();
            let served = (0..1000).take_while(is_served).count();
            assert!(
                served < UNWITNESSED_MAX as usize,
                "{served} reads after {busy}"
            );
            assert!(served <= busy, "{served} reads after {busy}");
            assert!(!clock.is_coarse());
        }
    }

    /// A clock as a forked child sees it: its updater is another process's.
    fn forked() -> Arc<CoarseClock> {
        let clock = Arc::new(CoarseClock::new());
        clock.tick();
        clock
            .keeper
            .store(std::process::id() + 1, Ordering::Release);
        clock
    }

    #[test]
    fn a_forked_process_finds_that_the_updater_is_gone() {
        let clock = forked();
        assert!(clock.is_coarse());
        assert!(clock.check_process());
        assert!(!clock.is_coarse());
        let before = CoarseInstant::precise();
        assert!(clock.now() >= before);

        // In its own process an updater is not gone.
        let clock = Arc::new(CoarseClock::new());
        assert!(!clock.check_process());
        let updater = Updater::start(Arc::clone(&clock), RESOLUTION, LAG_MAX).unwrap();
        assert!(!clock.check_process());
        drop(updater);
    }

    #[test]
    fn a_forked_process_takes_the_clock_over() {
        let clock = forked();
        let updater = Updater::start(Arc::clone(&clock), RESOLUTION, LAG_MAX).unwrap();
        let second = Updater::start(Arc::clone(&clock), RESOLUTION, LAG_MAX);
        assert!(matches!(second, Err(ClockError::AlreadyKept)));
        assert!(!clock.check_process());
        // Ends when the new updater has run; if it never did, the test would hang and not pass.
        let begin = clock.now();
        while clock.now() == begin || !clock.is_coarse() {
            std::thread::yield_now();
        }
        drop(updater);
        assert!(!clock.is_coarse());
        assert_eq!(clock.keeper.load(Ordering::Acquire), NO_PROCESS);
    }

    #[test]
    fn an_updater_dropped_in_a_forked_process_waits_for_no_thread() {
        let clock = forked();
        // A thread that never ends stands for one that is not there.
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let _ = blocked.recv();
        });
        drop(Updater {
            clock: Arc::clone(&clock),
            is_stopping: Arc::default(),
            threads: vec![thread],
            process: std::process::id() + 1,
        });
        assert!(!clock.is_coarse());
        drop(release);
    }

    #[test]
    fn the_watch_takes_away_a_time_that_nobody_renews() {
        let clock = Arc::new(CoarseClock::new());
        clock.tick();
        // A watch beside an updater that never runs.
        let mut stalled = Updater {
            clock: Arc::clone(&clock),
            is_stopping: Arc::default(),
            threads: Vec::new(),
            process: std::process::id(),
        };
        stalled.watch(LAG_MAX).unwrap();
        // Ends when the watch has looked; if it never did, the test would hang and not pass.
        while clock.is_coarse() {
            std::thread::yield_now();
        }
        let before = CoarseInstant::precise();
        assert!(clock.now() >= before);
    }
}
