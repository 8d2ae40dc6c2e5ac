//! What is exposed, whatever the format: families of series that are distinct on the wire.

use super::names::{self, FamilyName};
use super::native::Native;
use crate::descriptor::{Descriptor, InstrumentKind, Scope};
use crate::exemplar::Exemplar;
use crate::histogram::HistogramSnapshot;
use crate::number::Value;
use crate::snapshot::{InstrumentSnapshot, MetricsSnapshot, Point};
use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

/// The most classic buckets that are written of an exponential histogram.
pub(super) const CLASSIC_BUCKETS_MAX: usize = 160;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// A gauge of ones whose labels are the information.
    Info,
}

#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: String,
    pub(super) unit: String,
    pub(super) help: String,
    pub(super) kind: Kind,
    pub(super) series: Vec<Series>,
    /// Labels to their place in `series`.
    places: HashMap<Labels, usize>,
}

pub(super) type Labels = Vec<(String, String)>;

#[derive(Debug)]
pub(super) struct Series {
    pub(super) labels: Labels,
    pub(super) sample: Sample,
    pub(super) start: Option<SystemTime>,
    pub(super) exemplars: Vec<Exemplar>,
}

impl Series {
    /// The newest exemplar whose value is above `low` and at most `high`.
    pub(super) fn exemplar(&self, low: f64, high: f64) -> Option<&Exemplar> {
        let is_within = |exemplar: &&Exemplar| {
            let value = exemplar.value().as_f64();
            low < value && value <= high
        };
        let within = self.exemplars.iter().filter(is_within);
        within.max_by_key(|exemplar| exemplar.time())
    }
}

#[derive(Debug)]
pub(super) enum Sample {
    Number(Value),
    Histogram(Distribution),
}

/// A histogram in the terms of the formats.
#[derive(Debug)]
pub(super) struct Distribution {
    pub(super) count: u64,
    pub(super) sum: Value,
    pub(super) buckets: Buckets,
}

#[derive(Debug)]
pub(super) enum Buckets {
    /// Upper bounds, without infinity, and how many values each bucket alone has.
    Explicit(Vec<(f64, u64)>),
    Native(Native),
}

/// Something that was recorded and is not exposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The instrument.
    pub instrument: String,
    /// Why.
    pub reason: String,
}

/// Sorts a snapshot into families. Of two that would be the same on the wire the second joins the first where that says what was
/// recorded; otherwise it is left out, and said to be.
pub(super) fn families(snapshot: &MetricsSnapshot) -> (Vec<Family>, Vec<LeftOut>) {
    let mut families: Vec<Family> = Vec::new();
    let mut left_out = Vec::new();
    // Every name that a sample can have, and whose it is.
    let mut claimed: HashMap<String, usize> = HashMap::new();
    if !snapshot.resource().is_empty() {
        let mut family = Family::new(
            "target_info".to_owned(),
            String::new(),
            "Target metadata",
            Kind::Info,
        );
        let labels = names::labels(snapshot.resource(), "", &[]);
        family.add(labels, Sample::Number(Value::U64(1)));
        claim(&mut claimed, &family, 0);
        families.push(family);
    }
    for metric in snapshot.metrics() {
        if !metric.series().iter().any(|series| series.is_exposed()) {
            continue;
        }
        let descriptor = metric.descriptor();
        let mut leave = |reason: String| {
            left_out.push(LeftOut {
                instrument: descriptor.name().to_owned(),
                reason,
            });
        };
        let FamilyName { name, unit } = names::family(descriptor);
        let kind = match descriptor.kind() {
            InstrumentKind::Counter => Kind::Counter,
            InstrumentKind::UpDownCounter | InstrumentKind::Gauge => Kind::Gauge,
            InstrumentKind::Histogram => Kind::Histogram,
        };
        let family = Family::new(name, unit, descriptor.description(), kind);
        let owners: Vec<usize> = sample_names(&family)
            .filter_map(|name| claimed.get(&name).copied())
            .collect();
        let place = match owners.first() {
            None => {
                claim(&mut claimed, &family, families.len());
                families.push(family);
                families.len() - 1
            }
            Some(owner) => {
                let first = &families[*owner];
                let is_same = first.kind == kind && first.name == family.name;
                if !is_same || owners.iter().any(|other| other != owner) {
                    leave(format!(
                        "its samples would have the names of those of `{}`, which is of another type",
                        first.name
                    ));
                    continue;
                }
                *owner
            }
        };
        let conflicts = add_all(&mut families[place], metric, descriptor);
        if conflicts > 0 {
            leave(format!(
                "{conflicts} of its series are on the wire the same as others, and cannot be added to them"
            ));
        }
    }
    if !left_out.is_empty() {
        let mut family = Family::new(
            "perf_metrics_left_out".to_owned(),
            String::new(),
            "Instruments that cannot be exposed beside others",
            Kind::Gauge,
        );
        if !sample_names(&family).any(|name| claimed.contains_key(&name)) {
            for LeftOut { instrument, reason } in &left_out {
                let labels = vec![
                    ("instrument".to_owned(), instrument.clone()),
                    ("reason".to_owned(), reason.clone()),
                ];
                family.add(labels, Sample::Number(Value::U64(1)));
            }
            families.push(family);
        }
    }
    (families, left_out)
}

/// How many series could not be added.
fn add_all(family: &mut Family, metric: &InstrumentSnapshot, descriptor: &Descriptor) -> usize {
    let own: &[&str] = match family.kind {
        Kind::Histogram => &[
            "le",
            "otel_scope_name",
            "otel_scope_version",
            "otel_scope_schema_url",
        ],
        _ => &[
            "otel_scope_name",
            "otel_scope_version",
            "otel_scope_schema_url",
        ],
    };
    let scope = descriptor.scope().map(scope_labels).unwrap_or_default();
    let mut conflicts = 0;
    // Labels of series that were removed. What follows them is exposed from the next time on: the sum of both, and then the second
    // alone, would look as if the second had been counted twice.
    let mut ended: HashSet<Labels> = HashSet::new();
    for series in metric.series().iter().filter(|series| series.is_exposed()) {
        let mut labels = names::labels(series.attributes(), "", own);
        for (key, value) in &scope {
            if !labels.iter().any(|(other, _)| other == key) {
                labels.push((key.clone(), value.clone()));
            }
        }
        labels.sort();
        let sample = match series.point() {
            Point::Number(value) => Sample::Number(*value),
            Point::Histogram(histogram) => Sample::Histogram(Distribution::new(histogram)),
            Point::Nothing => continue,
        };
        if ended.contains(&labels) {
            continue;
        }
        if series.end().is_some() {
            ended.insert(labels.clone());
        }
        let new = Series {
            labels,
            sample,
            start: series.start(),
            exemplars: series.exemplars().to_vec(),
        };
        let is_gauge = descriptor.kind() == InstrumentKind::Gauge;
        conflicts += usize::from(!family.merge(new, is_gauge));
    }
    conflicts
}

fn scope_labels(scope: &Scope) -> Labels {
    let mut labels = names::labels(scope.attributes(), "otel_scope_", &[]);
    for (key, value) in [
        ("otel_scope_name", scope.name()),
        ("otel_scope_version", scope.version()),
        ("otel_scope_schema_url", scope.schema_url()),
    ] {
        if !value.is_empty() {
            labels.retain(|(other, _)| other != key);
            labels.push((key.to_owned(), value.to_owned()));
        }
    }
    labels
}

fn sample_names(family: &Family) -> impl Iterator<Item = String> + '_ {
    let suffixes: &[&str] = match family.kind {
        Kind::Counter => &["", "_total", "_created"],
        Kind::Gauge => &[""],
        Kind::Histogram => &["", "_bucket", "_sum", "_count", "_created"],
        Kind::Info => &["", "_info"],
    };
    suffixes
        .iter()
        .map(|suffix| format!("{}{suffix}", family.name))
}

fn claim(claimed: &mut HashMap<String, usize>, family: &Family, place: usize) {
    for name in sample_names(family) {
        claimed.insert(name, place);
    }
}

impl Family {
    fn new(name: String, unit: String, help: &str, kind: Kind) -> Self {
        Self {
            name,
            unit,
            help: help.to_owned(),
            kind,
            series: Vec::new(),
            places: HashMap::new(),
        }
    }

    fn add(&mut self, labels: Labels, sample: Sample) {
        self.places.insert(labels.clone(), self.series.len());
        self.series.push(Series {
            labels,
            sample,
            start: None,
            exemplars: Vec::new(),
        });
    }

    /// Adds a series, or its values to those of the series that has its labels; `false` if that cannot be done.
    fn merge(&mut self, new: Series, is_gauge: bool) -> bool {
        let place = match self.places.entry(new.labels.clone()) {
            Entry::Vacant(place) => {
                place.insert(self.series.len());
                self.series.push(new);
                return true;
            }
            Entry::Occupied(place) => *place.get(),
        };
        let Some(first) = self.series.get_mut(place) else {
            return false;
        };
        // Of what has counted since different times the sum has since the earlier.
        first.start = first.start.min(new.start);
        first.exemplars.extend(new.exemplars);
        match (&mut first.sample, new.sample) {
            (Sample::Number(first), Sample::Number(value)) if !is_gauge => {
                *first = first.plus(value);
                true
            }
            (Sample::Histogram(first), Sample::Histogram(other)) => first.merge(&other),
            _ => false,
        }
    }
}

impl Distribution {
    fn new(histogram: &HistogramSnapshot) -> Self {
        let explicit = || {
            let bounds = histogram.boundaries().unwrap_or_default().iter().copied();
            bounds.zip(histogram.buckets().iter().copied()).collect()
        };
        Self {
            count: histogram.count(),
            sum: histogram.sum(),
            buckets: Native::new(histogram)
                .map_or_else(|| Buckets::Explicit(explicit()), Buckets::Native),
        }
    }

    pub(super) fn native(&self) -> Option<&Native> {
        match &self.buckets {
            Buckets::Native(native) => Some(native),
            Buckets::Explicit(_) => None,
        }
    }

    /// Upper bounds, without infinity, and how many values each bucket alone has.
    pub(super) fn classic(&self) -> Cow<'_, [(f64, u64)]> {
        match &self.buckets {
            Buckets::Native(native) => Cow::Owned(native.classic(CLASSIC_BUCKETS_MAX)),
            Buckets::Explicit(buckets) => Cow::Borrowed(buckets),
        }
    }

    /// `false` if they have different boundaries, or one has boundaries and the other none.
    fn merge(&mut self, other: &Self) -> bool {
        match (&mut self.buckets, &other.buckets) {
            (Buckets::Native(native), Buckets::Native(other)) => *native = native.plus(other),
            (Buckets::Explicit(buckets), Buckets::Explicit(others)) => {
                let bounds = |of: &[(f64, u64)]| {
                    of.iter()
                        .map(|(bound, _)| bound.to_bits())
                        .collect::<Vec<_>>()
                };
                if bounds(buckets) != bounds(others) {
                    return false;
                }
                for ((_, count), (_, more)) in buckets.iter_mut().zip(others) {
                    *count = count.wrapping_add(*more);
                }
            }
            _ => return false,
        }
        self.count = self.count.wrapping_add(other.count);
        self.sum = self.sum.plus(other.sum);
        true
    }
}
