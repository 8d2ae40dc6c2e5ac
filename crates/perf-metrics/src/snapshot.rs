//! What a collection found.

use crate::attributes::KeyValue;
use crate::descriptor::Descriptor;
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
    pub(crate) metrics: Vec<MetricSnapshot>,
}

impl MetricsSnapshot {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The instruments in the order in which they were made.
    #[must_use]
    pub fn metrics(&self) -> &[MetricSnapshot] {
        &self.metrics
    }

    /// The instrument of this name.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<&MetricSnapshot> {
        self.metrics
            .iter()
            .find(|metric| metric.descriptor.name() == name)
    }

    /// From when on the sums count: when the registry was made, or the last delta was taken.
    #[must_use]
    pub fn start(&self) -> Option<SystemTime> {
        self.start
    }

    /// When it was collected.
    #[must_use]
    pub fn time(&self) -> Option<SystemTime> {
        self.time
    }
}

/// One instrument.
#[derive(Clone, Debug)]
pub struct MetricSnapshot {
    pub(crate) descriptor: Arc<Descriptor>,
    pub(crate) series: Vec<SeriesSnapshot>,
}

impl MetricSnapshot {
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

    /// The series with exactly these attributes, in any order.
    #[must_use]
    pub fn find(&self, attributes: &[KeyValue]) -> Option<&SeriesSnapshot> {
        self.series
            .iter()
            .find(|series| crate::attributes::same_set(&series.attributes, attributes))
    }
}

/// One set of attributes of an instrument.
#[derive(Clone, Debug)]
pub struct SeriesSnapshot {
    pub(crate) attributes: Arc<[KeyValue]>,
    pub(crate) point: Point,
    pub(crate) is_recorded: bool,
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

    /// Whether a collection into this snapshot ever found it different from zero. Exporters that send points leave out what was never
    /// recorded, as the SDK does.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.is_recorded
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

    /// Whether there is something that is not zero.
    pub(crate) fn is_something(&self, is_gauge: bool) -> bool {
        match self {
            Self::Nothing => false,
            Self::Number(value) => is_gauge || !value.is_zero(),
            Self::Histogram(histogram) => histogram.count() > 0,
        }
    }
}
