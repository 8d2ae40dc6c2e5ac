//! What a case is: one workload, done the way nodes do it today, our way, and the peers' ways.

use std::hint::black_box;
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
    /// How many threads work at once. A path's time is per operation of one of them; where they are a runtime's workers, it is
    /// per operation of all together.
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

    /// Says what is wrong with the case as a line of the list, if anything is.
    ///
    /// # Errors
    ///
    /// The first problem: an id that is not `group/name`, a text with a tab or a line end, no
    /// threads, two peers of one name, or a goal that no number can meet.
    pub fn check(&self) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("case `{}`: {what}", self.id));
        let parts: Vec<&str> = self.id.split('/').collect();
        if parts.len() != 2 || parts.contains(&"") {
            return wrong("the id is not `group/name`");
        }
        let names = self.peers.iter().map(|peer| peer.name);
        let texts = names.clone().chain([self.id, self.about]);
        if texts
            .into_iter()
            .any(|text| text.contains(['\t', '\n', '\r']))
        {
            return wrong("a name or the description has a tab or a line end");
        }
        if self.threads == 0 {
            return wrong("it has no threads");
        }
        let mut seen = vec!["before", "after"];
        for name in names {
            if seen.contains(&name) {
                return wrong("two paths have the same name");
            }
            seen.push(name);
        }
        let possible = |goal: &Goal| match goal {
            Goal::Ratio { at_least, .. } => *at_least > 0.0,
            Goal::Instructions(most) | Goal::Allocations(most) => *most >= 0.0,
        };
        if !self.goals.iter().all(possible) {
            return wrong("a goal is not a possible number");
        }
        Ok(())
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

/// Makes a [`Run`] of a read: the results are added up and only the sum is kept, so that nothing but the read
/// itself is in the loop. The compiler may not skip a read of an atomic or under a lock.
pub fn summed(mut read: impl FnMut() -> u64 + 'static) -> Run {
    Box::new(move |iters| {
        let start = Instant::now();
        let mut sum = 0_u64;
        for _ in 0..iters {
            sum = sum.wrapping_add(read());
        }
        black_box(sum);
        start.elapsed()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Case {
        let prepare = || timed(|| ());
        Case {
            id: "group/name",
            about: "what a node does",
            threads: 1,
            before: path("before", prepare),
            after: path("after", prepare),
            peers: vec![path("somebody", prepare)],
            goals: vec![Goal::Allocations(0.0)],
        }
    }

    #[test]
    fn a_sound_case_passes_and_each_flaw_is_found() {
        assert_eq!(sound().check(), Ok(()));
        assert_eq!(sound().group(), "group");
        let flaws: [fn(&mut Case); 7] = [
            |case| case.id = "name",
            |case| case.id = "group/",
            |case| case.id = "group/name/more",
            |case| case.about = "two\nlines",
            |case| case.threads = 0,
            |case| case.peers[0].name = "after",
            |case| case.goals.push(Goal::Instructions(f64::NAN)),
        ];
        for (place, flaw) in flaws.iter().enumerate() {
            let mut case = sound();
            flaw(&mut case);
            assert!(case.check().is_err(), "flaw {place} was not found");
        }
    }

    #[test]
    fn timed_calls_the_operation_as_often_as_asked() {
        let calls = std::rc::Rc::new(std::cell::Cell::new(0));
        let inner = std::rc::Rc::clone(&calls);
        let mut run = timed(move || inner.set(inner.get() + 1));
        run(3);
        run(4);
        assert_eq!(calls.get(), 7);
    }
}
