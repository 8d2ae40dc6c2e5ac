//! What a case is: one workload, done the way nodes do it today, our way, and the peers' ways.

use std::time::{Duration, Instant};

/// Performs the given number of operations and returns the time that counts.
///
/// A path that must leave something out of its time (a stalled writer, a hand-over between
/// threads) measures itself; all others are made by [`timed`].
pub type Run = Box<dyn FnMut(u64) -> Duration>;

/// Builds a path's state once, outside the measurement.
pub type Prepare = fn() -> Run;

/// The allocator a path must run under, and so the process it runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Allocator {
    /// The system's allocator: what a Rust program has when it chooses nothing.
    System,
    /// mimalloc as the global allocator.
    Mimalloc,
}

/// One way to do a case's work.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// `before`, `after`, or the peer's name as the goals spell it.
    pub name: &'static str,
    /// The allocator it runs under.
    pub allocator: Allocator,
    /// Builds its state.
    pub prepare: Prepare,
}

/// What a case is expected to reach, checked against the measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The named path takes at least this many times as long as `after`.
    Ratio {
        /// `before` or a peer's name.
        against: &'static str,
        /// The least ratio that meets the goal.
        at_least: f64,
    },
    /// `after` executes at most this many instructions per operation.
    Instructions(f64),
    /// `after` allocates at most this often per operation.
    Allocations(f64),
}

/// One workload with its paths.
#[derive(Clone, Debug)]
pub struct Case {
    /// `group/name`, stable: tools and baselines refer to it.
    pub id: &'static str,
    /// One line for the reader of a report: what a node does when it does this.
    pub about: &'static str,
    /// How many threads work at once; a path's time is per operation of one of them.
    pub threads: u32,
    /// What nodes do today.
    pub before: Path,
    /// What this project does.
    pub after: Path,
    /// What others offer for the same work.
    pub peers: Vec<Path>,
    /// What this case is expected to reach.
    pub goals: Vec<Goal>,
}

impl Case {
    /// The part of the id before the slash.
    #[must_use]
    pub fn group(&self) -> &'static str {
        self.id.split_once('/').map_or(self.id, |(group, _)| group)
    }
}

/// A path under the system's allocator.
#[must_use]
pub const fn path(name: &'static str, prepare: Prepare) -> Path {
    Path {
        name,
        allocator: Allocator::System,
        prepare,
    }
}

/// Makes a [`Run`] of one operation: the closure is called `iters` times in a row and the whole is timed.
pub fn timed(mut operation: impl FnMut() + 'static) -> Run {
    Box::new(move |iters| {
        let start = Instant::now();
        for _ in 0..iters {
            operation();
        }
        start.elapsed()
    })
}
