//! What a recorder is told before its first record.

use crate::builder::{Instrument, InstrumentBuilder};
use crate::histogram::Buckets;
use crate::registry::{INSTRUMENTS_MAX, Registry};
use metrics::{SharedString, Unit};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;

/// Which names a setting is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Matcher {
    /// This name.
    Full(String),
    /// Names that begin so.
    Prefix(String),
    /// Names that end so.
    Suffix(String),
}

impl Matcher {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Full(full) => name == full,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => name.ends_with(suffix.as_str()),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) registry: Registry,
    pub(super) idle: Option<Duration>,
    pub(super) series_max: usize,
    pub(super) buckets: Vec<(Matcher, Buckets)>,
}

impl Settings {
    /// Of a histogram of this name, if some are set for it.
    pub(super) fn buckets(&self, name: &str) -> Option<Buckets> {
        let mut buckets = self.buckets.iter();
        let (_, buckets) = buckets.find(|(names, _)| names.matches(name))?;
        Some(buckets.clone())
    }
}

/// Units and descriptions by name.
#[derive(Default)]
pub(super) struct Descriptions(Mutex<HashMap<String, (Option<Unit>, String)>>);

impl Descriptions {
    pub(super) fn put(&self, name: &str, unit: Option<Unit>, description: SharedString) {
        let mut descriptions = self.0.lock();
        // Bounded like the instruments that they describe.
        if descriptions.len() < INSTRUMENTS_MAX || descriptions.contains_key(name) {
            descriptions.insert(name.to_owned(), (unit, description.into_owned()));
        }
    }

    /// Describes an instrument as the name that was given for it is described.
    pub(super) fn describe<I: Instrument>(
        &self,
        mut builder: InstrumentBuilder<I>,
        name: &str,
    ) -> InstrumentBuilder<I> {
        if let Some((unit, description)) = self.0.lock().get(name) {
            builder = builder.with_description(description.clone());
            if let Some(unit) = unit {
                builder = builder.with_unit(ucum(*unit));
            }
        }
        builder
    }
}

/// What all series of a recorder share.
pub(super) struct Context {
    /// Of all recorders of the process.
    pub(super) id: u64,
    pub(super) settings: Settings,
    pub(super) descriptions: Descriptions,
}

fn ucum(unit: Unit) -> &'static str {
    match unit {
        Unit::Count => "",
        Unit::Percent => "%",
        Unit::Seconds => "s",
        Unit::Milliseconds => "ms",
        Unit::Microseconds => "us",
        Unit::Nanoseconds => "ns",
        Unit::Tebibytes => "TiBy",
        Unit::Gibibytes => "GiBy",
        Unit::Mebibytes => "MiBy",
        Unit::Kibibytes => "KiBy",
        Unit::Bytes => "By",
        Unit::TerabitsPerSecond => "Tbit/s",
        Unit::GigabitsPerSecond => "Gbit/s",
        Unit::MegabitsPerSecond => "Mbit/s",
        Unit::KilobitsPerSecond => "kbit/s",
        Unit::BitsPerSecond => "bit/s",
        Unit::CountPerSecond => "1/s",
    }
}
