//! An instrument: what all of its series have in common, and the series.

use crate::MetricsError;
use crate::attributes::{EMPTY_ATTRS, KeyValue};
use crate::cells::{BoundCounter, BoundUpDownCounter, SumCell};
use crate::descriptor::{Descriptor, InstrumentKind};
use crate::dynamic::{Dynamic, Series};
use crate::gauge::BoundGauge;
use crate::histogram::{BoundHistogram, HistogramNumber, Layout, Shape};
use crate::number::Number;
use crate::snapshot::{MetricSnapshot, Point, SeriesSnapshot};
use std::fmt::Debug;
use std::sync::Arc;

/// The part of a series that is recorded to.
pub trait SeriesCell: Clone + Debug + Send + Sync + 'static {
    /// What all series of an instrument share.
    #[doc(hidden)]
    type Spec: Debug + Send + Sync;
    #[doc(hidden)]
    fn new(name: &str, spec: &Self::Spec) -> Result<Self, MetricsError>;
    #[doc(hidden)]
    fn read(&self, reader: Option<usize>, out: &mut Point);
    #[doc(hidden)]
    fn forget(&self, _reader: usize) {}
    #[doc(hidden)]
    fn boundaries(_spec: &Self::Spec) -> Option<&[f64]> {
        None
    }
}

impl<T: Number> SeriesCell for BoundCounter<T> {
    type Spec = ();

    fn new(name: &str, (): &()) -> Result<Self, MetricsError> {
        SumCell::new(name).map(Self)
    }

    fn read(&self, _reader: Option<usize>, out: &mut Point) {
        out.set(Some(self.0.sum()));
    }
}

impl<T: Number> SeriesCell for BoundUpDownCounter<T> {
    type Spec = ();

    fn new(name: &str, (): &()) -> Result<Self, MetricsError> {
        SumCell::new(name).map(Self)
    }

    fn read(&self, _reader: Option<usize>, out: &mut Point) {
        out.set(Some(self.0.sum()));
    }
}

impl<T: Number> SeriesCell for BoundGauge<T> {
    type Spec = ();

    fn new(_name: &str, (): &()) -> Result<Self, MetricsError> {
        Ok(Self::new())
    }

    fn read(&self, _reader: Option<usize>, out: &mut Point) {
        out.set(self.get());
    }
}

/// Keeps a private type out of a public trait's signature.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct HistogramSpec(pub(crate) Arc<Layout>);

impl<T: HistogramNumber> SeriesCell for BoundHistogram<T> {
    type Spec = HistogramSpec;

    fn new(name: &str, spec: &HistogramSpec) -> Result<Self, MetricsError> {
        Self::new(name, &spec.0)
    }

    fn read(&self, reader: Option<usize>, out: &mut Point) {
        self.read(reader, out.histogram_mut());
    }

    fn forget(&self, reader: usize) {
        self.forget(reader);
    }

    fn boundaries(spec: &HistogramSpec) -> Option<&[f64]> {
        match &spec.0.shape {
            Shape::Explicit(bounds) => Some(bounds),
            Shape::Exponential(_) => None,
        }
    }
}

/// What a registry knows of an instrument.
pub(crate) trait Source: Debug + Send + Sync {
    fn descriptor(&self) -> &Arc<Descriptor>;
    fn collect(&self, reader: Option<usize>, out: &mut MetricSnapshot);
    fn forget(&self, reader: usize);
    /// The explicit boundaries of a histogram that was made with some.
    #[cfg(feature = "otel")]
    fn boundaries(&self) -> Option<&[f64]>;
    /// Runs `run` while every lock that recording could meet is held.
    fn hold(&self, run: &mut dyn FnMut());
}

#[derive(Debug)]
pub(crate) struct Core<C: SeriesCell> {
    pub(crate) descriptor: Arc<Descriptor>,
    spec: C::Spec,
    /// The series without attributes, or those of a table.
    fixed: Vec<Series<C>>,
    /// For attributes at run time; tables have none.
    dynamic: Option<Dynamic<C>>,
}

impl<C: SeriesCell> Core<C> {
    /// An instrument with one series without attributes, and up to `limit` others.
    pub(crate) fn plain(
        descriptor: Descriptor,
        spec: C::Spec,
        limit: usize,
    ) -> Result<(C, Self), MetricsError> {
        let cell = C::new(descriptor.name(), &spec)?;
        let plain = Series {
            attributes: EMPTY_ATTRS.into(),
            places: Box::default(),
            cell: cell.clone(),
        };
        let dynamic = Dynamic::new(descriptor.name(), &spec, limit)?;
        let core = Self {
            descriptor: Arc::new(descriptor),
            spec,
            fixed: vec![plain],
            dynamic: Some(dynamic),
        };
        Ok((cell, core))
    }

    /// An instrument with the series of a table.
    pub(crate) fn table(descriptor: Descriptor, spec: C::Spec) -> Self {
        Self {
            descriptor: Arc::new(descriptor),
            spec,
            fixed: Vec::new(),
            dynamic: None,
        }
    }

    /// One more series of a table.
    pub(crate) fn push(&mut self, attributes: &[KeyValue]) -> Result<C, MetricsError> {
        let cell = C::new(self.descriptor.name(), &self.spec)?;
        self.fixed.push(Series {
            attributes: attributes.into(),
            places: Box::default(),
            cell: cell.clone(),
        });
        Ok(cell)
    }

    /// The series of these attributes.
    #[inline]
    pub(crate) fn get<'a>(&'a self, plain: &'a C, attributes: &[KeyValue]) -> &'a C {
        match &self.dynamic {
            Some(dynamic) if !attributes.is_empty() => {
                dynamic.get(self.descriptor.name(), &self.spec, attributes)
            }
            _ => plain,
        }
    }

    fn for_each(&self, mut visit: impl FnMut(&Series<C>)) {
        self.fixed.iter().for_each(&mut visit);
        if let Some(dynamic) = &self.dynamic {
            dynamic.for_each(visit);
        }
    }
}

impl<C: SeriesCell> Source for Core<C> {
    fn descriptor(&self) -> &Arc<Descriptor> {
        &self.descriptor
    }

    fn collect(&self, reader: Option<usize>, out: &mut MetricSnapshot) {
        let is_gauge = self.descriptor.kind() == InstrumentKind::Gauge;
        let mut place = 0;
        self.for_each(|series| {
            if place == out.series.len() {
                out.series.push(SeriesSnapshot {
                    attributes: Arc::clone(&series.attributes),
                    point: Point::Nothing,
                    is_recorded: false,
                });
            }
            let snapshot = &mut out.series[place];
            series.cell.read(reader, &mut snapshot.point);
            snapshot.is_recorded |= snapshot.point.is_something(is_gauge);
            place += 1;
        });
    }

    fn forget(&self, reader: usize) {
        self.for_each(|series| series.cell.forget(reader));
    }

    #[cfg(feature = "otel")]
    fn boundaries(&self) -> Option<&[f64]> {
        C::boundaries(&self.spec)
    }

    fn hold(&self, run: &mut dyn FnMut()) {
        match &self.dynamic {
            Some(dynamic) => dynamic.hold(run),
            None => run(),
        }
    }
}
