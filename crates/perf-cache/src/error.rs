//! What can be wrong with the settings of a cache.

use std::fmt;
use std::time::Duration;

/// Why a cache, an index or a manager refuses.
#[derive(Debug)]
#[non_exhaustive]
pub enum CacheError {
    /// A cache of no capacity would compute everything and keep nothing.
    ZeroCapacity,
    /// A time that must be longer than nothing: a value would be outdated before it is read.
    ZeroDuration {
        /// The setting: `ttl`, `idle`, `stale_while_revalidate`, `negative_ttl` or `interval`.
        setting: &'static str,
    },
    /// The jitter is no share of the TTL.
    Jitter {
        /// What was asked for; allowed are 0.0 to 0.9.
        requested: f64,
    },
    /// The manager has as many caches as it takes.
    TooManyCaches {
        /// How many it takes.
        caches_max: usize,
    },
    /// A placement index of more nodes than it takes.
    TooManyNodes {
        /// How many it takes.
        nodes_max: usize,
    },
    /// More distinct labels than the index tells apart.
    TooManyLabels {
        /// How many it takes.
        labels_max: usize,
    },
    /// The system gave no thread for the work in the background.
    Spawn(std::io::Error),
    /// This manager is being cleaned up already.
    AlreadyStarted,
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ZeroCapacity => {
                f.write_str("cache capacity of 0: it must be at least 1; without a cache, call the computation itself")
            }
            Self::ZeroDuration { setting } => write!(
                f,
                "{setting} of 0: it must be longer; leave the setting out to do without it"
            ),
            Self::Jitter { requested } => {
                write!(f, "jitter of {requested}: allowed is a share of the TTL from 0.0 to 0.9")
            }
            Self::TooManyCaches { caches_max } => write!(
                f,
                "this manager has {caches_max} caches, the most it takes: drop some, or make a second manager"
            ),
            Self::TooManyNodes { nodes_max } => write!(
                f,
                "this index has {nodes_max} nodes, the most it takes: remove some, or split the cluster"
            ),
            Self::TooManyLabels { labels_max } => write!(
                f,
                "this index has {labels_max} distinct labels, the most it takes: reuse labels"
            ),
            Self::Spawn(error) => write!(f, "no thread for the work in the background: {error}"),
            Self::AlreadyStarted => {
                f.write_str("this manager is being cleaned up already: drop that guard first")
            }
        }
    }
}

impl std::error::Error for CacheError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Spawn(error) => Some(error),
            _ => None,
        }
    }
}

/// Refuses a duration of nothing.
pub(crate) fn longer_than_zero(
    setting: &'static str,
    duration: Duration,
) -> Result<Duration, CacheError> {
    if duration.is_zero() {
        Err(CacheError::ZeroDuration { setting })
    } else {
        Ok(duration)
    }
}
