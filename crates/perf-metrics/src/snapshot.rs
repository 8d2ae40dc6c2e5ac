//! What a collection found.

use crate::attributes::KeyValue;
use crate::descriptor::Descriptor;
use crate::exemplar::Exemplar;
use crate::histogram::HistogramSnapshot;
use crate::number::Value;
use std::sync::Arc;
use std::time::SystemTime;

/// All series of a registry at one moment. Collecting into the same snapshot again reuses its memory.
#[derive(Clone, Debug, Default)]
pub struct MetricsSnapshot {
    /// Which registry `metrics` came from; others have other instruments in these places.
    pub(crate) registry: usize,
    pub(crate) start: Option<SystemTime>,
    /// When the registry was made, since when sums count that are cumulative in any case.
    pub(crate) cumulative_start: Option<SystemTime>,
    pub(crate) time: Option<SystemTime>,
    pub(crate) metrics: Vec<InstrumentSnapshot>,
    pub(crate) resource: Arc<[KeyValue]>,
}

impl MetricsSnapshot {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The instruments in the order in which they were made.
    #[must_use]
    pub fn metrics(&self) -> &[InstrumentSnapshot] {
        &self.metrics
    }

    /// The instrument of this name.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<&InstrumentSnapshot> {
        self.metrics
            .iter()
            .find(|metric| metric.descriptor.name() == name)
    }

    /// What the registry's metrics are about: [`Registry::set_resource`](crate::Registry::set_resource).
    #[must_use]
    pub fn resource(&self) -> &[KeyValue] {
        &self.resource
    }

    /// From when on the sums count, but for series that began later: when the registry was made, or the last delta was taken.
    #[must_use]
    pub fn start(&self) -> Option<SystemTime> {
        self.start
    }

    /// When it was collected: no series that is in it began later.
    #[must_use]
    pub fn time(&self) -> Option<SystemTime> {
        self.time
    }
}

/// One instrument.
#[derive(Clone, Debug)]
pub struct InstrumentSnapshot {
    pub(crate) id: u64,
    pub(crate) descriptor: Arc<Descriptor>,
    pub(crate) series: Vec<SeriesSnapshot>,
    /// Series that were removed and whose last value this reader has: what may yet be recorded to them counts from there.
    pub(crate) left: Vec<SeriesSnapshot>,
}

/// Brings the series of a list up to date, in the order of their ids, so that the memory of those that stay is reused.
pub(crate) struct Merge<'a> {
    list: &'a mut Vec<SeriesSnapshot>,
    place: usize,
}

impl<'a> Merge<'a> {
    pub(crate) fn new(list: &'a mut Vec<SeriesSnapshot>) -> Self {
        Self { list, place: 0 }
    }

    /// Makes room for so many in all, and for no more.
    pub(crate) fn reserve(&mut self, len: usize) {
        self.list.reserve_exact(len.saturating_sub(self.list.len()));
    }

    /// The series of this id, which is greater than that of the last call; made if it is not there.
    pub(crate) fn next(
        &mut self,
        id: u64,
        make: impl FnOnce() -> SeriesSnapshot,
    ) -> &mut SeriesSnapshot {
        let place = self.place;
        let gone = self.list[place..]
            .iter()
            .take_while(|old| old.id < id)
            .count();
        self.list.drain(place..place + gone);
        if self.list.get(place).is_none_or(|old| old.id != id) {
            self.list.insert(place, make());
        }
        self.place += 1;
        &mut self.list[place]
    }

    /// Takes out what is behind the last.
    pub(crate) fn finish(self) {
        self.list.truncate(self.place);
    }
}

impl InstrumentSnapshot {
    pub(crate) fn new(id: u64, descriptor: &Arc<Descriptor>) -> Self {
        Self {
            id,
            descriptor: Arc::clone(descriptor),
            series: Vec::new(),
            left: Vec::new(),
        }
    }

    /// What the instrument is called.
    #[must_use]
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Its series in the order in which they came into being.
    #[must_use]
    pub fn series(&self) -> &[SeriesSnapshot] {
        &self.series
    }

    /// The series with exactly these attributes, in any order. Of a series that was removed since the last collection and the one that
    /// has followed it, the latter.
    #[must_use]
    pub fn find(&self, attributes: &[KeyValue]) -> Option<&SeriesSnapshot> {
        self.series
            .iter()
            .rfind(|series| crate::attributes::same_set(&series.attributes, attributes))
    }
}

/// One set of attributes of an instrument.
#[derive(Clone, Debug)]
pub struct SeriesSnapshot {
    /// Ascends within an instrument.
    pub(crate) id: u64,
    pub(crate) attributes: Arc<[KeyValue]>,
    pub(crate) start: Option<SystemTime>,
    pub(crate) end: Option<SystemTime>,
    pub(crate) point: Point,
    pub(crate) exemplars: Vec<Exemplar>,
    pub(crate) is_recorded: bool,
    /// It was there before it was recorded to, by its maker's will.
    pub(crate) is_declared: bool,
}

/// What a series holds.
#[derive(Clone, Debug, Default)]
pub enum Point {
    /// Nothing: a gauge that was never set, or no change since the last delta.
    #[default]
    Nothing,
    /// A sum or the value of a gauge.
    Number(Value),
    /// A distribution.
    Histogram(Box<HistogramSnapshot>),
}

impl SeriesSnapshot {
    /// The attributes.
    #[must_use]
    pub fn attributes(&self) -> &[KeyValue] {
        &self.attributes
    }

    /// The value.
    #[must_use]
    pub fn point(&self) -> &Point {
        &self.point
    }

    /// The number of a sum or gauge.
    #[must_use]
    pub fn value(&self) -> Option<Value> {
        match self.point {
            Point::Number(value) => Some(value),
            _ => None,
        }
    }

    /// The distribution of a histogram.
    #[must_use]
    pub fn histogram(&self) -> Option<&HistogramSnapshot> {
        match &self.point {
            Point::Histogram(histogram) => Some(histogram),
            _ => None,
        }
    }

    /// Since when it counts: since its instrument was made, or, with attributes given at run time, since they were first met. A series that
    /// was removed and comes back starts anew. In a delta, since the last collection.
    #[must_use]
    pub fn start(&self) -> Option<SystemTime> {
        self.start
    }

    /// When it was removed; `None` if it is still there. This is then the last value of the series, and another series with the same
    /// attributes may follow it.
    #[must_use]
    pub fn end(&self) -> Option<SystemTime> {
        self.end
    }

    /// Measurements with the traces they were made in, of instruments made after
    /// [`Registry::set_exemplar_source`](crate::Registry::set_exemplar_source); in a delta, those made since the last collection.
    #[must_use]
    pub fn exemplars(&self) -> &[Exemplar] {
        &self.exemplars
    }

    /// Whether it was ever recorded to, as far as collections have seen; in a delta, whether it was since the last. Exporters leave out
    /// what was not, as the SDK does.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.is_recorded
    }

    #[cfg(feature = "prometheus")]
    pub(crate) fn is_exposed(&self) -> bool {
        !matches!(self.point, Point::Nothing) && (self.is_recorded || self.is_declared)
    }
}

impl Point {
    pub(crate) fn set(&mut self, value: Option<Value>) {
        *self = value.map_or(Self::Nothing, Self::Number);
    }

    pub(crate) fn histogram_mut(&mut self) -> &mut HistogramSnapshot {
        if !matches!(self, Self::Histogram(_)) {
            *self = Self::Histogram(Box::default());
        }
        match self {
            Self::Histogram(histogram) => histogram,
            _ => unreachable!("the line above made it one"),
        }
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Number(value) => value.bits(),
            Self::Histogram(histogram) => histogram.fingerprint(),
        }
    }

    /// Whether both hold the same sum and count.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let sum = |point: &Self| match point {
            Self::Histogram(histogram) => histogram.sum().bits(),
            _ => 0,
        };
        (self.fingerprint(), sum(self)) == (other.fingerprint(), sum(other))
    }

    /// Whether there is something that is not zero.
    pub(crate) fn is_something(&self, is_gauge: bool) -> bool {
        match self {
            Self::Nothing => false,
            Self::Number(value) => is_gauge || !value.is_zero(),
            Self::Histogram(histogram) => histogram.fingerprint() > 0,
        }
    }
}
