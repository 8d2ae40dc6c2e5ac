//! An instrument: what all of its series have in common, and the series.

use crate::MetricsError;
use crate::attributes::{EMPTY_ATTRS, KeyValue, same_set};
use crate::cells::{BoundCounter, BoundUpDownCounter, SumCell, SumSpec};
use crate::descriptor::{Descriptor, InstrumentKind};
use crate::dynamic::Dynamic;
use crate::exemplar::{Exemplar, ExemplarSource};
use crate::gauge::BoundGauge;
use crate::histogram::{BoundHistogram, HistogramNumber, Layout, Shape};
use crate::liveness::{Leaving, Liveness};
use crate::number::Number;
use crate::snapshot::{InstrumentSnapshot, Merge, Point, SeriesSnapshot};
use crate::table::{Series, next_id};
use perf_atomics::slab;
use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// The part of a series that is recorded to.
pub trait SeriesCell: Clone + Debug + Send + Sync + 'static {
    /// What all series of an instrument share.
    #[doc(hidden)]
    type Spec: Debug + Send + Sync;
    #[doc(hidden)]
    fn new(name: &str, spec: &Self::Spec) -> Result<Self, MetricsError>;
    /// One that needs no cells: what is recorded is lost.
    #[doc(hidden)]
    fn detached(spec: &Self::Spec) -> Self;
    #[doc(hidden)]
    fn read(&self, reader: Option<usize>, out: &mut Point);
    /// Replaces what is in `out`; leaves it alone if the series has no exemplars.
    #[doc(hidden)]
    fn read_exemplars(&self, _out: &mut Vec<Exemplar>) {}
    #[doc(hidden)]
    fn forget(&self, _reader: usize) {}
    #[doc(hidden)]
    fn boundaries(_spec: &Self::Spec) -> Option<&[f64]> {
        None
    }
    /// Whether both make the same series.
    #[doc(hidden)]
    fn is_same_spec(_one: &Self::Spec, _other: &Self::Spec) -> bool {
        true
    }
    /// Whether there is another handle on it than this.
    #[doc(hidden)]
    fn is_held(&self) -> bool;
    /// Changes when something is recorded.
    #[doc(hidden)]
    fn fingerprint(&self) -> u64;
    /// Whether it was recorded to since the last call, also where that changed nothing.
    #[doc(hidden)]
    fn take_touched(&self) -> bool {
        false
    }
    /// Whether more than a quarter of the cells that series are made of is free.
    #[doc(hidden)]
    fn has_spare_cells() -> bool {
        true
    }
    /// How often such cells were given back.
    #[doc(hidden)]
    fn returns() -> u32 {
        0
    }
}

macro_rules! sum {
    ($Bound:ident) => {
        impl<T: Number> SeriesCell for $Bound<T> {
            type Spec = SumSpec;

            fn new(name: &str, spec: &SumSpec) -> Result<Self, MetricsError> {
                SumCell::new(name, spec).map(Self)
            }

            fn detached(_spec: &SumSpec) -> Self {
                Self(SumCell::detached())
            }

            fn read_exemplars(&self, out: &mut Vec<Exemplar>) {
                self.0.read_exemplars(out);
            }

            fn read(&self, _reader: Option<usize>, out: &mut Point) {
                out.set(Some(self.0.sum()));
            }

            fn is_held(&self) -> bool {
                self.0.is_held()
            }

            fn fingerprint(&self) -> u64 {
                self.0.sum().bits()
            }

            fn has_spare_cells() -> bool {
                slab::free_cells(false) > slab::CELLS_MAX / 4
            }

            fn returns() -> u32 {
                slab::returns(false)
            }
        }
    };
}

sum!(BoundCounter);
sum!(BoundUpDownCounter);

impl<T: Number> SeriesCell for BoundGauge<T> {
    type Spec = ();

    fn new(_name: &str, (): &()) -> Result<Self, MetricsError> {
        Ok(Self::new())
    }

    fn detached((): &()) -> Self {
        Self::new()
    }

    fn read(&self, _reader: Option<usize>, out: &mut Point) {
        out.set(self.get());
    }

    fn is_held(&self) -> bool {
        self.is_held()
    }

    fn fingerprint(&self) -> u64 {
        self.get().map_or(0, |value| value.bits())
    }

    fn take_touched(&self) -> bool {
        self.take_touched()
    }
}

/// Keeps a private type out of a public trait's signature.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct HistogramSpec {
    pub(crate) layout: Arc<Layout>,
    pub(crate) source: Option<ExemplarSource>,
}

impl<T: HistogramNumber> SeriesCell for BoundHistogram<T> {
    type Spec = HistogramSpec;

    fn new(name: &str, spec: &HistogramSpec) -> Result<Self, MetricsError> {
        Self::new(name, &spec.layout, spec.source.as_ref())
    }

    fn detached(spec: &HistogramSpec) -> Self {
        Self::detached(&spec.layout)
    }

    fn read_exemplars(&self, out: &mut Vec<Exemplar>) {
        self.read_exemplars(out);
    }

    fn read(&self, reader: Option<usize>, out: &mut Point) {
        self.read(reader, out.histogram_mut());
    }

    fn forget(&self, reader: usize) {
        self.forget(reader);
    }

    fn boundaries(spec: &HistogramSpec) -> Option<&[f64]> {
        match &spec.layout.shape {
            Shape::Explicit(bounds) => Some(bounds),
            Shape::Exponential(_) => None,
        }
    }

    fn is_same_spec(one: &HistogramSpec, other: &HistogramSpec) -> bool {
        Arc::ptr_eq(&one.layout, &other.layout) || one.layout.shape == other.layout.shape
    }

    fn is_held(&self) -> bool {
        self.is_held()
    }

    fn fingerprint(&self) -> u64 {
        let mut point = Point::Nothing;
        self.read(None, point.histogram_mut());
        point.fingerprint()
    }

    fn has_spare_cells() -> bool {
        slab::free_cells(true) > slab::WIDE_CELLS_MAX / 4
    }

    fn returns() -> u32 {
        slab::returns(true)
    }
}

/// What a registry knows of an instrument.
pub(crate) trait Source: Debug + Send + Sync {
    fn id(&self) -> u64;
    fn descriptor(&self) -> &Arc<Descriptor>;
    /// `extremes` is the reader if it takes the extremes since its last collection.
    fn collect(
        &self,
        reader: usize,
        extremes: Option<usize>,
        readers: u16,
        out: &mut InstrumentSnapshot,
    );
    fn forget(&self, reader: usize);
    /// The explicit boundaries of a histogram that was made with some.
    #[cfg(feature = "otel")]
    fn boundaries(&self) -> Option<&[f64]>;
    /// Runs `run` while every lock that recording could meet is held.
    fn hold(&self, run: &mut dyn FnMut());
    /// Whether a handle on one of its series is left, besides handles on the instrument.
    fn is_held(&self) -> bool;
    /// How it leaves, now that no handle is left.
    fn leave(&self, reader: usize, readers: u16) -> Leaving;
    /// A handle was made of what was about to leave.
    fn stay(&self);
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

#[derive(Debug)]
pub(crate) struct Core<C: SeriesCell> {
    id: u64,
    pub(crate) descriptor: Arc<Descriptor>,
    pub(crate) spec: C::Spec,
    /// The series without attributes, or those of a table.
    fixed: Vec<Arc<Series<C>>>,
    /// For attributes at run time; tables have none.
    dynamic: Option<Dynamic<C>>,
    /// How long a series of attributes at run time may be idle before it leaves.
    retention: Option<Duration>,
    liveness: Liveness,
    /// It stays although no handle is left.
    is_kept: AtomicBool,
}

impl<C: SeriesCell> Core<C> {
    /// An instrument with one series without attributes, and up to `limit` others.
    pub(crate) fn plain(
        descriptor: Descriptor,
        spec: C::Spec,
        limit: usize,
        retention: Option<Duration>,
        start: SystemTime,
    ) -> Result<Self, MetricsError> {
        let plain = C::new(descriptor.name(), &spec)?;
        let overflow = C::new(descriptor.name(), &spec)?;
        Ok(Self::of(
            descriptor,
            spec,
            (plain, overflow),
            limit,
            retention,
            start,
        ))
    }

    /// An instrument that no registry knows and that counts nothing.
    pub(crate) fn detached(descriptor: Descriptor, spec: C::Spec) -> Self {
        let cells = (C::detached(&spec), C::detached(&spec));
        Self::of(descriptor, spec, cells, 0, None, SystemTime::now())
    }

    fn of(
        descriptor: Descriptor,
        spec: C::Spec,
        (plain, overflow): (C, C),
        limit: usize,
        retention: Option<Duration>,
        start: SystemTime,
    ) -> Self {
        Self {
            id: next_id(),
            descriptor: Arc::new(descriptor),
            spec,
            fixed: vec![Arc::new(Series::fixed(EMPTY_ATTRS, plain, start))],
            dynamic: Some(Dynamic::new(overflow, limit, start)),
            retention,
            liveness: Liveness::new(start, false),
            is_kept: AtomicBool::new(false),
        }
    }

    /// An instrument with the series of a table.
    pub(crate) fn table(descriptor: Descriptor, spec: C::Spec, start: SystemTime) -> Self {
        Self {
            id: next_id(),
            descriptor: Arc::new(descriptor),
            spec,
            fixed: Vec::new(),
            dynamic: None,
            retention: None,
            liveness: Liveness::new(start, false),
            is_kept: AtomicBool::new(false),
        }
    }

    /// One more series of a table.
    pub(crate) fn push(&mut self, attributes: &[KeyValue]) -> Result<C, MetricsError> {
        let cell = C::new(self.descriptor.name(), &self.spec)?;
        let series = Series::fixed(attributes, cell.clone(), self.liveness.start);
        self.fixed.push(Arc::new(series));
        Ok(cell)
    }

    /// The series without attributes; none of a table.
    pub(crate) fn plain_cell(&self) -> Option<C> {
        self.dynamic.as_ref()?;
        self.fixed.first().map(|series| series.cell.clone())
    }

    /// The series of a table.
    pub(crate) fn fixed_cell(&self, attributes: &[KeyValue]) -> Option<C> {
        if self.dynamic.is_some() {
            return None;
        }
        let found = self
            .fixed
            .iter()
            .find(|series| same_set(&series.attributes, attributes));
        found.map(|series| series.cell.clone())
    }

    /// Lets it stay in the registry, also when no handle is left.
    pub(crate) fn keep(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
    }

    pub(crate) fn fixed_len(&self) -> usize {
        self.fixed.len()
    }

    /// Runs `run` with the series of these attributes.
    #[inline]
    pub(crate) fn with<R>(
        &self,
        plain: &C,
        attributes: &[KeyValue],
        is_record: bool,
        run: impl FnOnce(&C) -> R,
    ) -> R {
        match &self.dynamic {
            Some(dynamic) if !attributes.is_empty() => dynamic.with(
                self.descriptor.name(),
                &self.spec,
                attributes,
                is_record,
                run,
            ),
            _ => run(plain),
        }
    }

    pub(crate) fn remove(&self, attributes: &[KeyValue]) -> bool {
        self.dynamic
            .as_ref()
            .is_some_and(|dynamic| dynamic.remove(attributes))
    }

    pub(crate) fn remove_if(&self, mut is_it: impl FnMut(&[KeyValue]) -> bool) {
        if let Some(dynamic) = &self.dynamic {
            dynamic.retire_if(|series| is_it(&series.attributes));
        }
    }
}

impl<C: SeriesCell> Source for Core<C> {
    fn id(&self) -> u64 {
        self.id
    }

    fn descriptor(&self) -> &Arc<Descriptor> {
        &self.descriptor
    }

    fn collect(
        &self,
        reader: usize,
        extremes: Option<usize>,
        readers: u16,
        out: &mut InstrumentSnapshot,
    ) {
        let is_gauge = self.descriptor.kind() == InstrumentKind::Gauge;
        let is_table = self.dynamic.is_none();
        if let (Some(idle), Some(dynamic)) = (self.retention, &self.dynamic) {
            let now = Instant::now();
            dynamic.retire_if(|series| {
                let cell = &series.cell;
                series
                    .liveness
                    .is_idle(cell.fingerprint(), cell.take_touched(), now, idle)
            });
        }
        let is_declared = is_table && self.descriptor.kind() != InstrumentKind::Histogram;
        let InstrumentSnapshot { series, left, .. } = out;
        let (mut told, mut left) = (Merge::new(series), Merge::new(left));
        told.reserve(self.fixed.len() + self.dynamic.as_ref().map_or(0, Dynamic::len));
        let mut visit = |series: &Series<C>, is_told: bool| {
            let to = if is_told { &mut told } else { &mut left };
            let snapshot = to.next(series.id, || SeriesSnapshot {
                id: series.id,
                attributes: Arc::clone(&series.attributes),
                start: Some(series.liveness.start),
                end: None,
                point: Point::Nothing,
                exemplars: Vec::new(),
                is_recorded: false,
                is_declared,
            });
            series.cell.read(extremes, &mut snapshot.point);
            series.cell.read_exemplars(&mut snapshot.exemplars);
            // What a handle binds is not at its end.
            snapshot.end = series.liveness.end().filter(|_| !series.cell.is_held());
            snapshot.is_recorded = series
                .liveness
                .is_recorded(snapshot.point.is_something(is_gauge))
                && is_told;
        };
        self.fixed.iter().for_each(|series| visit(series, true));
        if let Some(dynamic) = &self.dynamic {
            dynamic.for_each(reader, readers, &mut visit);
        }
        told.finish();
        left.finish();
    }

    fn forget(&self, reader: usize) {
        self.fixed
            .iter()
            .for_each(|series| series.cell.forget(reader));
        if let Some(dynamic) = &self.dynamic {
            dynamic.forget(reader);
        }
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

    fn is_held(&self) -> bool {
        // Relaxed: it is set through a handle, whose end is seen before this is asked.
        self.is_kept.load(Ordering::Relaxed)
            || self.fixed.iter().any(|series| series.cell.is_held())
            || self.dynamic.as_ref().is_some_and(Dynamic::is_held)
    }

    fn leave(&self, reader: usize, readers: u16) -> Leaving {
        self.liveness.leave(reader, readers, true, 0)
    }

    fn stay(&self) {
        self.liveness.stay();
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
