//! A reader of a registry that remembers what it has read.

use crate::descriptor::{Descriptor, InstrumentKind};
use crate::exemplar::Exemplar;
use crate::registry::Registry;
use crate::snapshot::{InstrumentSnapshot, Merge, MetricsSnapshot, Point, SeriesSnapshot};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

/// Since when sums count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Temporality {
    /// Since the registry was made.
    #[default]
    Cumulative,
    /// Since the last collection of the same reader. Up-down counters stay cumulative:
    /// <https://opentelemetry.io/docs/specs/otel/metrics/sdk_exporters/otlp/#additional-environment-variable-configuration>.
    Delta,
    /// As [`Delta`](Self::Delta), but for observable counters, which stay cumulative: what is observed need not be
    /// remembered.
    LowMemory,
}

impl Temporality {
    /// Whether an instrument counts since the last collection.
    pub(crate) fn is_delta(self, descriptor: &Descriptor) -> bool {
        let has_deltas = matches!(
            descriptor.kind(),
            InstrumentKind::Counter | InstrumentKind::Histogram
        );
        match self {
            Self::Cumulative => false,
            Self::Delta => has_deltas,
            Self::LowMemory => has_deltas && !descriptor.is_observable(),
        }
    }
}

/// Collects a registry with either temporality. Any number of readers up to
/// [`READERS_MAX`](crate::READERS_MAX) count independently and exactly: nothing is reset in the cells, a
/// delta is the difference of two readings.
pub struct Reader {
    registry: Registry,
    slot: usize,
    temporality: Temporality,
    now: MetricsSnapshot,
    then: MetricsSnapshot,
    delta: MetricsSnapshot,
}

impl Reader {
    pub(crate) fn new(registry: Registry, slot: usize, temporality: Temporality) -> Self {
        Self {
            registry,
            slot,
            temporality,
            now: MetricsSnapshot::new(),
            then: MetricsSnapshot::new(),
            delta: MetricsSnapshot::new(),
        }
    }

    /// Which temporality it collects.
    #[must_use]
    pub fn temporality(&self) -> Temporality {
        self.temporality
    }

    /// Reads all instruments. The first delta counts since the registry was made.
    ///
    /// What was collected counts as delivered: to deliver it again, keep it. Costs what
    /// [`Registry::collect_into`] costs, and as much again for a delta.
    pub fn collect(&mut self) -> &MetricsSnapshot {
        if self.temporality == Temporality::Cumulative {
            self.registry.collect_for(self.slot, false, &mut self.now);
            return &self.now;
        }
        self.registry.collect_for(self.slot, true, &mut self.now);
        #[cfg(perf_loom)]
        if perf_atomics::__loom::is_mutant("slab_reader_clears") {
            // The fault to be found: cells that were cleared hold the difference already.
            self.then = MetricsSnapshot::new();
        }
        subtract(&self.now, &self.then, self.temporality, &mut self.delta);
        std::mem::swap(&mut self.now, &mut self.then);
        &self.delta
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.registry.forget_reader(self.slot);
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("temporality", &self.temporality)
            .finish_non_exhaustive()
    }
}

/// Sets `out` to what has changed from `then` to `now`. Instruments and series are found by their ids, which ascend in all three.
fn subtract(
    now: &MetricsSnapshot,
    then: &MetricsSnapshot,
    temporality: Temporality,
    out: &mut MetricsSnapshot,
) {
    out.registry = now.registry;
    out.start = then.time.or(now.start);
    out.cumulative_start = now.cumulative_start;
    out.time = now.time;
    out.resource = Arc::clone(&now.resource);
    let mut earlier = then.metrics.iter().peekable();
    for (index, metric) in now.metrics.iter().enumerate() {
        let gone = out.metrics[index..]
            .iter()
            .take_while(|old| old.id < metric.id)
            .count();
        out.metrics.drain(index..index + gone);
        if out.metrics.get(index).is_none_or(|old| old.id != metric.id) {
            let new = InstrumentSnapshot::new(metric.id, &metric.descriptor);
            out.metrics.insert(index, new);
        }
        while earlier.next_if(|earlier| earlier.id < metric.id).is_some() {}
        let earlier = earlier.next_if(|earlier| earlier.id == metric.id);
        let is_delta = temporality.is_delta(&metric.descriptor);
        subtract_series(
            metric,
            earlier,
            then.time,
            is_delta,
            &mut out.metrics[index],
        );
    }
    out.metrics.truncate(now.metrics.len());
}

fn subtract_series(
    metric: &InstrumentSnapshot,
    then: Option<&InstrumentSnapshot>,
    then_time: Option<SystemTime>,
    is_delta: bool,
    out: &mut InstrumentSnapshot,
) {
    // A series that has left may have been told or known then.
    let mut told = then.map_or(&[][..], |then| &then.series).iter().peekable();
    let mut left = then.map_or(&[][..], |then| &then.left).iter().peekable();
    let InstrumentSnapshot {
        series: out_told,
        left: out_left,
        ..
    } = out;
    let (mut out_told, mut out_left) = (Merge::new(out_told), Merge::new(out_left));
    let (mut now, mut now_left) = (metric.series.iter().peekable(), metric.left.iter());
    let mut next_left = now_left.next();
    loop {
        // In the order of their ids, from both lists.
        let id = next_left.map_or(u64::MAX, |left| left.id);
        let (series, has_left) = match (now.next_if(|series| series.id < id), next_left) {
            (Some(series), _) => (series, false),
            (None, Some(series)) => {
                next_left = now_left.next();
                (series, true)
            }
            (None, None) => break,
        };
        let mut then = None;
        for list in [&mut told, &mut left] {
            while list.next_if(|then| then.id < series.id).is_some() {}
            then = list.next_if(|then| then.id == series.id).or(then);
        }
        let earlier = then.map_or(&Point::Nothing, |then| &then.point);
        // What a thread recorded between the check that nothing was and the reading of a series that has left is told all the same.
        let is_told = !has_left || is_delta && !series.point.is_same(earlier);
        if !is_told {
            out_left.next(series.id, || series.clone_without_point());
            continue;
        }
        let out = out_told.next(series.id, || series.clone_without_point());
        match (&series.point, earlier) {
            (Point::Number(now), Point::Number(then)) if is_delta => {
                out.point.set(Some(now.since(*then)))
            }
            (Point::Histogram(now), Point::Histogram(then)) => {
                now.since(then, out.point.histogram_mut())
            }
            (Point::Histogram(now), _) => now.since(
                &crate::histogram::HistogramSnapshot::default(),
                out.point.histogram_mut(),
            ),
            (Point::Number(now), _) => out.point.set(Some(*now)),
            (Point::Nothing, _) => out.point = Point::Nothing,
        }
        let is_new =
            |exemplar: &&Exemplar| then.is_none_or(|then| !then.exemplars.contains(exemplar));
        out.exemplars.clear();
        out.exemplars.extend(series.exemplars.iter().filter(is_new));
        out.end = series.end;
        out.start = if is_delta {
            series.start.max(then_time)
        } else {
            series.start
        };
        // What was observed is told, also if it is the same as before.
        out.is_recorded = match is_delta && !metric.descriptor.is_observable() {
            true => out.point.is_something(false),
            false => series.is_recorded,
        };
    }
    out_told.finish();
    out_left.finish();
}

impl SeriesSnapshot {
    fn clone_without_point(&self) -> Self {
        Self {
            id: self.id,
            attributes: Arc::clone(&self.attributes),
            start: self.start,
            end: self.end,
            point: Point::Nothing,
            exemplars: Vec::new(),
            is_recorded: false,
            is_declared: self.is_declared,
        }
    }
}
