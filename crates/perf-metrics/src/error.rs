//! What can be wrong when instruments are made.

use crate::descriptor::{NAME_BYTES_MAX, UNIT_BYTES_MAX};
use perf_atomics::slab::SlabFull;
use std::fmt;

/// Why an instrument, a table or a reader could not be made.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum MetricsError {
    /// The name does not follow OpenTelemetry's syntax.
    InvalidName {
        /// The name that was given.
        name: String,
    },
    /// The unit is too long or not ASCII.
    InvalidUnit {
        /// The instrument.
        name: String,
        /// The unit that was given.
        unit: String,
    },
    /// Another instrument of the registry has this name.
    DuplicateName {
        /// The name that was given.
        name: String,
    },
    /// The boundaries of a histogram are not finite, not ascending, or too many.
    InvalidBoundaries {
        /// The instrument.
        name: String,
        /// What is wrong, and what is allowed.
        problem: &'static str,
    },
    /// The process has no cells left.
    NoCells {
        /// The instrument.
        name: String,
        /// What the slab said.
        source: SlabFull,
    },
    /// The registry is full.
    TooManyInstruments {
        /// The instrument that found no place.
        name: String,
        /// How many there can be.
        instruments_max: usize,
    },
    /// A callback of an observable instrument panicked.
    CallbackPanicked {
        /// The instrument.
        name: String,
    },
    /// The registry serves all readers it can.
    TooManyReaders {
        /// How many there can be at once.
        readers_max: usize,
    },
}

impl fmt::Display for MetricsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidName { name } => write!(
                f,
                "instrument name {name:?}: allowed are 1 to {NAME_BYTES_MAX} ASCII characters that start with a letter and go \
                 on with letters, digits, `_`, `.`, `-` and `/`; rename the instrument"
            ),
            Self::InvalidUnit { name, unit } => write!(
                f,
                "unit {unit:?} of instrument `{name}`: allowed are at most {UNIT_BYTES_MAX} ASCII characters; use a UCUM code \
                 such as `s`, `By` or `{{request}}`"
            ),
            Self::DuplicateName { name } => write!(
                f,
                "instrument `{name}` exists already in this registry: make it once, then clone the handle"
            ),
            Self::InvalidBoundaries { name, problem } => {
                write!(f, "buckets of histogram `{name}`: {problem}")
            }
            Self::NoCells { name, source } => write!(f, "instrument `{name}`: {source}"),
            Self::TooManyInstruments {
                name,
                instruments_max,
            } => write!(
                f,
                "instrument `{name}`: the registry holds {instruments_max} instruments already; use attributes instead of \
                 instruments whose names are made at run time, or another registry"
            ),
            Self::CallbackPanicked { name } => write!(
                f,
                "a callback of instrument `{name}` panicked: what it observed is left out until it returns normally; mend the callback"
            ),
            Self::TooManyReaders { readers_max } => write!(
                f,
                "the registry serves {readers_max} readers already; drop one that is no longer used"
            ),
        }
    }
}

impl std::error::Error for MetricsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoCells { source, .. } => Some(source),
            _ => None,
        }
    }
}
