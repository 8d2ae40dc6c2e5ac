//! What an experiment is: figures that are no time per operation, such as hit ratios, percentiles under load,
//! and counts.
//!
//! Two paths that do the same work are a [`Case`](crate::case::Case): its paired rounds cancel the machine's noise,
//! which an experiment cannot do. An experiment that compares times therefore states a bound as a ratio
//! between figures of its own run.

/// How long an experiment may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// About two seconds: enough to see that it works, and its figures roughly.
    Quick,
    /// As long as the figures need, up to about a minute.
    Full,
}

/// What a figure counts, and so how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A time in nanoseconds.
    Nanoseconds,
    /// A part of a whole, 0 to 1.
    Share,
    /// A number of things.
    Count,
    /// How many times as much.
    Ratio,
    /// Operations per second.
    PerSecond,
    /// Bytes per second.
    BytesPerSecond,
}

impl Unit {
    /// Its name in the workers' protocol and in the report.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::Share => "share",
            Self::Count => "count",
            Self::Ratio => "ratio",
            Self::PerSecond => "per_second",
            Self::BytesPerSecond => "bytes_per_second",
        }
    }
}

/// What a figure is expected to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// This much or more.
    AtLeast(f64),
    /// This much or less.
    AtMost(f64),
}

/// One number that an experiment found.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was measured, such as `zipf 0.9, ours`.
    pub name: String,
    /// The number, in `unit`.
    pub value: f64,
    /// What it counts.
    pub unit: Unit,
    /// The goal, where there is one. It may come from other figures of the run.
    pub goal: Option<Bound>,
}

impl Figure {
    /// A figure without a goal.
    #[must_use]
    pub fn new(name: impl Into<String>, value: f64, unit: Unit) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            goal: None,
        }
    }

    /// The same with a goal.
    #[must_use]
    pub fn expected(self, goal: Bound) -> Self {
        Self {
            goal: Some(goal),
            ..self
        }
    }
}

/// Runs an experiment from nothing and says why when it cannot.
pub type Measure = fn(Depth) -> Result<Vec<Figure>, String>;

/// One experiment.
#[derive(Clone, Copy, Debug)]
pub struct Experiment {
    /// `group/name`, stable like a case's, and distinct from all of theirs.
    pub id: &'static str,
    /// One line for the reader of a report.
    pub about: &'static str,
    /// Runs it, in a process of its own under the system's allocator. Peers belong behind the feature `peers`.
    pub measure: Measure,
}
