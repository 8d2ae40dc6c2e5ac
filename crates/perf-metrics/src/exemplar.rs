//! Exemplars: single measurements with the trace in which they were made.
//!
//! An instrument without exemplars pays nothing for them. An instrument with exemplars has a handle that never finds its cells, so that
//! each record takes the slow way, which is where exemplars are offered. An exemplar is written into a fixed slot without waiting: a
//! thread that finds its slot claimed by another leaves its exemplar out.

use crate::number::{Number, Value};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How many exemplars a series of a histogram keeps at most. Buckets share the slots, in turn.
pub const EXEMPLARS_MAX: usize = 16;

/// The trace and the span in which a measurement was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The trace's identifier, most significant byte first.
    pub trace_id: [u8; 16],
    /// The span's identifier, most significant byte first.
    pub span_id: [u8; 8],
}

impl TraceContext {
    /// The sampled span of the current [`opentelemetry::Context`]; `None` if there is none. Give it to
    /// [`Registry::set_exemplar_source`](crate::Registry::set_exemplar_source). `tracing-opentelemetry` sets that context for spans of
    /// `tracing` where its layer activates contexts, as it does by default.
    #[cfg(feature = "trace-context")]
    #[must_use]
    pub fn current() -> Option<Self> {
        use opentelemetry::trace::TraceContextExt;
        opentelemetry::Context::map_current(|context| {
            let span = context.span();
            let span = span.span_context();
            (span.is_valid() && span.is_sampled()).then(|| Self {
                trace_id: span.trace_id().to_bytes(),
                span_id: span.span_id().to_bytes(),
            })
        })
    }

    /// Both identifiers as 32 and 16 hexadecimal digits.
    #[cfg(feature = "prometheus")]
    pub(crate) fn to_hex(self) -> (String, String) {
        (
            format!("{:032x}", u128::from_be_bytes(self.trace_id)),
            format!("{:016x}", u64::from_be_bytes(self.span_id)),
        )
    }
}

/// One measurement with its trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    value: Value,
    time: SystemTime,
    trace: TraceContext,
}

impl Exemplar {
    /// What was recorded.
    #[must_use]
    pub fn value(&self) -> Value {
        self.value
    }

    /// When it was recorded.
    #[must_use]
    pub fn time(&self) -> SystemTime {
        self.time
    }

    /// The trace and the span in which it was recorded.
    #[must_use]
    pub fn trace(&self) -> TraceContext {
        self.trace
    }
}

/// Tells the trace of the calling thread.
#[doc(hidden)]
#[derive(Clone)]
pub struct ExemplarSource(Arc<dyn Fn() -> Option<TraceContext> + Send + Sync>);

impl ExemplarSource {
    pub(crate) fn new(source: impl Fn() -> Option<TraceContext> + Send + Sync + 'static) -> Self {
        Self(Arc::new(source))
    }
}

impl fmt::Debug for ExemplarSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExemplarSource").finish_non_exhaustive()
    }
}

/// The exemplars of one series.
#[derive(Debug)]
pub(crate) struct Exemplars {
    source: ExemplarSource,
    slots: Box<[Slot]>,
}

/// Value, nanoseconds since 1970, two halves of the trace, the span. A time of zero means that there is no exemplar.
type Words = [u64; 5];

#[derive(Debug, Default)]
struct Slot {
    is_claimed: AtomicBool,
    words: [AtomicU64; 5],
}

impl Slot {
    /// Runs `run` with the words if no other thread has them.
    fn claim<R>(&self, run: impl FnOnce(&[AtomicU64; 5]) -> R) -> Option<R> {
        // Acquire and Release: the words are those of the last owner. Relaxed within, as there is one owner at a time.
        if self.is_claimed.swap(true, Ordering::Acquire) {
            return None;
        }
        let result = run(&self.words);
        self.is_claimed.store(false, Ordering::Release);
        Some(result)
    }

    fn write(&self, new: Words) {
        self.claim(|words| {
            for (word, new) in words.iter().zip(new) {
                word.store(new, Ordering::Relaxed);
            }
        });
    }

    fn read(&self) -> Option<Words> {
        self.claim(|words| words.each_ref().map(|word| word.load(Ordering::Relaxed)))
    }
}

impl Exemplars {
    /// Exemplars of a series with so many buckets.
    pub(crate) fn new(source: &ExemplarSource, buckets: usize) -> Self {
        Self {
            source: source.clone(),
            slots: std::iter::repeat_with(Slot::default)
                .take(buckets.clamp(1, EXEMPLARS_MAX))
                .collect(),
        }
    }

    /// Keeps a measurement if it was made in a trace. Takes no lock and allocates nothing, if the source does neither.
    pub(crate) fn offer<T: Number>(&self, bucket: usize, value: T) {
        let Some(trace) = (self.source.0)() else {
            return;
        };
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let nanos = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).max(1);
        let id = u128::from_be_bytes(trace.trace_id);
        if let Some(slot) = self.slots.get(bucket % self.slots.len().max(1)) {
            slot.write([
                value.to_bits64(),
                nanos,
                (id >> 64) as u64,
                id as u64,
                u64::from_be_bytes(trace.span_id),
            ]);
        }
    }

    /// Replaces what is in `out`. A slot that is being written keeps its exemplar for the next collection.
    pub(crate) fn read<T: Number>(&self, out: &mut Vec<Exemplar>) {
        out.clear();
        for [value, nanos, high, low, span] in self.slots.iter().filter_map(Slot::read) {
            if nanos > 0 {
                out.push(Exemplar {
                    value: T::from_bits64(value).to_value(),
                    time: UNIX_EPOCH + Duration::from_nanos(nanos),
                    trace: TraceContext {
                        trace_id: (u128::from(high) << 64 | u128::from(low)).to_be_bytes(),
                        span_id: span.to_be_bytes(),
                    },
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exemplars(buckets: usize) -> Exemplars {
        let trace = TraceContext {
            trace_id: [7; 16],
            span_id: [9; 8],
        };
        Exemplars::new(&ExemplarSource::new(move || Some(trace)), buckets)
    }

    #[test]
    fn a_claimed_slot_is_left_alone() {
        let all = exemplars(1);
        let mut read = Vec::new();
        all.offer(0, 3u64);
        all.slots[0].claim(|_| {
            all.offer(0, 4u64);
            all.read::<u64>(&mut read);
            assert!(read.is_empty(), "it is being written");
        });
        all.read::<u64>(&mut read);
        assert_eq!(read[0].value(), Value::U64(3));
    }

    #[test]
    fn a_slot_keeps_the_last_of_its_buckets() {
        let all = exemplars(1000);
        (0..100).for_each(|n| all.offer(n, n as f64));
        let mut read = Vec::new();
        all.read::<f64>(&mut read);
        assert_eq!(read.len(), EXEMPLARS_MAX);
        assert!(read.iter().all(|e| e.value().as_f64() >= 84.0));
    }

    /// Halves of different exemplars never meet, whatever the threads do.
    #[test]
    fn an_exemplar_is_read_whole() {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let source = || {
            let n = NEXT.fetch_add(1, Ordering::Relaxed) as u8;
            Some(TraceContext {
                trace_id: [n; 16],
                span_id: [n; 8],
            })
        };
        let all = Exemplars::new(&ExemplarSource::new(source), 1);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..20_000u64).for_each(|n| all.offer(0, n)));
            }
            let mut read = Vec::new();
            for _ in 0..20_000 {
                all.read::<u64>(&mut read);
                for exemplar in &read {
                    let trace = exemplar.trace();
                    let byte = trace.span_id[0];
                    assert_eq!((trace.trace_id, trace.span_id), ([byte; 16], [byte; 8]));
                }
            }
        });
    }
}
