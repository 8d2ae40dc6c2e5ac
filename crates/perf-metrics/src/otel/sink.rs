//! The SDK's instruments that a registry's are brought into. The only place that uses bound instruments.

use super::replay::Pending;
use crate::attributes::KeyValue;
use crate::descriptor::{Descriptor, InstrumentKind, NumberKind};
use crate::number::Value;
use crate::snapshot::{InstrumentSnapshot, Point};
use opentelemetry::metrics::{self as sdk, Meter};
use std::collections::HashMap;

/// One of the SDK's instruments with its series so far, in the order of the registry's.
pub(super) struct Sink {
    instrument: Instrument,
    /// By id.
    series: HashMap<u64, Series>,
    was_seen: bool,
}

enum Instrument {
    CounterU64(sdk::Counter<u64>),
    CounterF64(sdk::Counter<f64>),
    UpDownI64(sdk::UpDownCounter<i64>),
    UpDownF64(sdk::UpDownCounter<f64>),
    GaugeU64(sdk::Gauge<u64>),
    GaugeI64(sdk::Gauge<i64>),
    GaugeF64(sdk::Gauge<f64>),
    HistogramU64(sdk::Histogram<u64>),
    HistogramF64(sdk::Histogram<f64>),
}

struct Series {
    bound: Option<Bound>,
    /// What was brought in of a sum that is not a delta.
    brought: Option<Value>,
    pending: Pending,
}

/// Bound when there is something to bring in: a bound series that was never recorded to still takes a place of the SDK's.
enum Bound {
    CounterU64(sdk::BoundCounter<u64>),
    CounterF64(sdk::BoundCounter<f64>),
    HistogramU64(sdk::BoundHistogram<u64>),
    HistogramF64(sdk::BoundHistogram<f64>),
}

impl Sink {
    pub(super) fn new(meter: &Meter, descriptor: &Descriptor, boundaries: Option<&[f64]>) -> Self {
        let [name, unit, description] = descriptor.texts();
        macro_rules! make {
            ($method:ident) => {
                meter
                    .$method(name)
                    .with_unit(unit)
                    .with_description(description)
            };
        }
        macro_rules! histogram {
            ($method:ident) => {{
                let builder = make!($method);
                match boundaries {
                    Some(boundaries) => builder.with_boundaries(boundaries.to_vec()).build(),
                    None => builder.build(),
                }
            }};
        }
        use InstrumentKind as K;
        use NumberKind as N;
        let instrument = match (descriptor.kind(), descriptor.number()) {
            (K::Counter, N::F64) => Instrument::CounterF64(make!(f64_counter).build()),
            (K::Counter, _) => Instrument::CounterU64(make!(u64_counter).build()),
            (K::UpDownCounter, N::F64) => Instrument::UpDownF64(make!(f64_up_down_counter).build()),
            (K::UpDownCounter, _) => Instrument::UpDownI64(make!(i64_up_down_counter).build()),
            (K::Gauge, N::U64) => Instrument::GaugeU64(make!(u64_gauge).build()),
            (K::Gauge, N::I64) => Instrument::GaugeI64(make!(i64_gauge).build()),
            (K::Gauge, N::F64) => Instrument::GaugeF64(make!(f64_gauge).build()),
            (K::Histogram, N::F64) => Instrument::HistogramF64(histogram!(f64_histogram)),
            (K::Histogram, _) => Instrument::HistogramU64(histogram!(u64_histogram)),
        };
        Self {
            instrument,
            series: HashMap::new(),
            was_seen: false,
        }
    }

    pub(super) fn pending(&self) -> u64 {
        self.series
            .values()
            .map(|series| series.pending.count())
            .sum()
    }

    /// Whether a collection had the instrument.
    pub(super) fn was_seen(&self) -> bool {
        self.was_seen
    }

    /// Brings in what changed; values of histograms as far as the budget goes.
    pub(super) fn flush(&mut self, metric: &InstrumentSnapshot, budget: &mut u64) {
        self.was_seen = true;
        for snapshot in metric.series() {
            let series = self.series.entry(snapshot.id).or_insert_with(|| Series {
                bound: None,
                brought: None,
                pending: Pending::default(),
            });
            match &snapshot.point {
                Point::Number(value) => {
                    series.bring(&self.instrument, snapshot.attributes(), *value)
                }
                Point::Histogram(histogram) => {
                    series.pending.add(histogram);
                    if series.pending.count() > 0 {
                        let bound = series
                            .bound
                            .get_or_insert_with(|| bind(&self.instrument, snapshot.attributes()));
                        series
                            .pending
                            .replay(budget, |value, times| record(bound, value, times));
                    }
                }
                Point::Nothing => {}
            }
        }
        // Values that series which have left had pending find their way too.
        let is_there = |id: &u64| {
            metric
                .series()
                .binary_search_by_key(id, |series| series.id)
                .is_ok()
        };
        for (_, series) in self.series.iter_mut().filter(|(id, _)| !is_there(id)) {
            if let Some(bound) = &series.bound {
                series
                    .pending
                    .replay(budget, |value, times| record(bound, value, times));
            }
        }
        self.series
            .retain(|id, series| is_there(id) || series.pending.count() > 0);
    }
}

impl Series {
    fn bring(&mut self, instrument: &Instrument, attributes: &[KeyValue], value: Value) {
        match (instrument, value) {
            // Of counters the value is a delta already.
            (Instrument::CounterU64(_) | Instrument::CounterF64(_), value) if !value.is_zero() => {
                match (
                    self.bound
                        .get_or_insert_with(|| bind(instrument, attributes)),
                    value,
                ) {
                    (Bound::CounterU64(counter), Value::U64(value)) => counter.add(value),
                    (Bound::CounterF64(counter), Value::F64(value)) => counter.add(value),
                    _ => {}
                }
            }
            (Instrument::UpDownI64(counter), Value::I64(now)) => {
                let delta = match self.brought.replace(value) {
                    Some(Value::I64(then)) => now.wrapping_sub(then),
                    _ => now,
                };
                if delta != 0 {
                    counter.add(delta, attributes);
                }
            }
            (Instrument::UpDownF64(counter), Value::F64(now)) => {
                let delta = match self.brought.replace(value) {
                    Some(Value::F64(then)) => now - then,
                    _ => now,
                };
                if delta != 0.0 {
                    counter.add(delta, attributes);
                }
            }
            (Instrument::GaugeU64(gauge), Value::U64(value)) => gauge.record(value, attributes),
            (Instrument::GaugeI64(gauge), Value::I64(value)) => gauge.record(value, attributes),
            (Instrument::GaugeF64(gauge), Value::F64(value)) => gauge.record(value, attributes),
            _ => {}
        }
    }
}

fn bind(instrument: &Instrument, attributes: &[KeyValue]) -> Bound {
    match instrument {
        Instrument::CounterF64(counter) => Bound::CounterF64(counter.bind(attributes)),
        Instrument::HistogramU64(histogram) => Bound::HistogramU64(histogram.bind(attributes)),
        Instrument::HistogramF64(histogram) => Bound::HistogramF64(histogram.bind(attributes)),
        Instrument::CounterU64(counter) => Bound::CounterU64(counter.bind(attributes)),
        // Never asked for: these are not bound, as there is little to gain.
        _ => unreachable!("only counters and histograms are bound"),
    }
}

fn record(bound: &Bound, value: Value, times: u64) {
    match (bound, value) {
        (Bound::HistogramU64(histogram), Value::U64(value)) => {
            (0..times).for_each(|_| histogram.record(value))
        }
        (Bound::HistogramF64(histogram), Value::F64(value)) => {
            (0..times).for_each(|_| histogram.record(value))
        }
        _ => {}
    }
}
