//! What lasts: the memory of many threads, and of series that came and went.

use std::fs;
use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{ManualReader, SdkMeterProvider};
use perf_metrics::{DEFAULT_BOUNDARIES, MetricsSnapshot, Registry};

use super::Shared;
use crate::experiment::{Bound, Depth, Experiment, Figure, Unit};

const COUNTERS: i64 = 1000;
const HISTOGRAMS: i64 = 100;
const MIB: f64 = 1024.0 * 1024.0;

pub(super) fn experiments() -> [Experiment; 4] {
    [
        Experiment {
            id: "metrics/memory_64_threads",
            about: "1000 series of counters and 100 of f64 histograms, each recorded by all of 64 threads, beside the SDK",
            measure: |_| memory(64, false),
        },
        Experiment {
            id: "metrics/memory_256_threads",
            about: "the same by 256 threads",
            measure: |_| memory(256, false),
        },
        Experiment {
            id: "metrics/memory_64_threads_same_buckets",
            about: "the same by 64 threads, with the SDK's boundaries in the place of exponential buckets",
            measure: |_| memory(64, true),
        },
        Experiment {
            id: "metrics/churn",
            about: "a million series made and removed",
            measure: churn,
        },
    ]
}

/// What the process has in memory, in bytes.
#[derive(Clone, Copy)]
struct Resident {
    all: f64,
    /// Without code and what else is in a file.
    anonymous: f64,
}

impl Resident {
    fn now() -> Result<Self, String> {
        let status = fs::read_to_string("/proc/self/status")
            .map_err(|error| format!("memory is read on Linux alone: {error}"))?;
        let bytes = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
            kib.map(|kib| kib * 1024.0)
                .ok_or_else(|| format!("/proc/self/status has no {name}"))
        };
        Ok(Self {
            all: bytes("VmRSS:")?,
            anonymous: bytes("RssAnon:")?,
        })
    }

    fn since(before: Self) -> Result<Self, String> {
        let now = Self::now()?;
        Ok(Self {
            all: now.all - before.all,
            anonymous: now.anonymous - before.anonymous,
        })
    }
}

/// How long `run` takes at best of a few times, in nanoseconds: what it costs without others.
fn at_best(mut run: impl FnMut()) -> f64 {
    let times = (0..20).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_nanos()
    });
    times.min().unwrap_or(0) as f64
}

type Work = Arc<dyn Fn() + Send + Sync>;

/// Threads that live until this is dropped, as a server's do.
struct Threads {
    work: Vec<mpsc::Sender<Work>>,
    done: Arc<Barrier>,
}

impl Threads {
    fn new(count: usize) -> Self {
        let done = Arc::new(Barrier::new(count + 1));
        let start = |_| {
            let (send, receive) = mpsc::channel::<Work>();
            let done = Arc::clone(&done);
            thread::spawn(move || {
                while let Ok(work) = receive.recv() {
                    work();
                    done.wait();
                }
            });
            send
        };
        let work = (0..count).map(start).collect();
        Self { work, done }
    }

    /// Runs the same in all of them, and waits.
    fn run(&self, work: &Work) {
        for thread in &self.work {
            // A thread ends only when its sender is dropped.
            let _ = thread.send(Arc::clone(work));
        }
        self.done.wait();
    }
}

/// Nine decades of durations, so that buckets all over are used.
fn duration(n: i64) -> f64 {
    10f64.powi((n % 9) as i32 - 6)
}

fn set(n: i64) -> [KeyValue; 1] {
    [KeyValue::new("n", n)]
}

fn memory(threads: usize, same_buckets: bool) -> Result<Vec<Figure>, String> {
    let pool = Threads::new(threads);
    // Stacks, and what the standard library keeps by thread.
    pool.run(&(Arc::new(|| drop(vec![0u8; 4096])) as Work));

    let before = Resident::now()?;
    let reader = Arc::new(ManualReader::builder().build());
    let provider = SdkMeterProvider::builder()
        .with_reader(Shared(Arc::clone(&reader)))
        .build();
    let meter = provider.meter("node");
    let (counter, histogram) = (
        meter.u64_counter("c").build(),
        meter.f64_histogram("h").build(),
    );
    pool.run(
        &(Arc::new(move || {
            (0..COUNTERS).for_each(|n| counter.add(1, &set(n)));
            (0..HISTOGRAMS * 9).for_each(|n| histogram.record(duration(n), &set(n / 9)));
        }) as Work),
    );
    let mut metrics = ResourceMetrics::default();
    let sdk_time = at_best(|| drop(MetricReader::collect(&*reader, &mut metrics)));
    let sdk = Resident::since(before)?;

    let before = Resident::now()?;
    let registry = Registry::new();
    let make = || -> Result<_, perf_metrics::MetricsError> {
        let histogram = registry.f64_histogram("h");
        let histogram = match same_buckets {
            true => histogram.with_boundaries(DEFAULT_BOUNDARIES),
            false => histogram,
        };
        Ok((registry.u64_counter("c").build()?, histogram.build()?))
    };
    let (counter, histogram) = make().map_err(|error| error.to_string())?;
    let (c, h) = (counter.clone(), histogram.clone());
    pool.run(
        &(Arc::new(move || {
            (0..COUNTERS).for_each(|n| c.add(1, &set(n)));
            (0..HISTOGRAMS * 9).for_each(|n| h.record(duration(n), &set(n / 9)));
        }) as Work),
    );
    let mut snapshot = MetricsSnapshot::new();
    let our_time = at_best(|| registry.collect_into(&mut snapshot));
    let ours = Resident::since(before)?;
    let time = |name, value| Figure::new(name, value, Unit::Nanoseconds);
    let of_bytes = |name, value| Figure::new(name, value, Unit::Count);
    Ok(vec![
        of_bytes("bytes, the SDK", sdk.all),
        of_bytes("bytes, ours", ours.all),
        Figure::new("bytes, ours of the SDK's", ours.all / sdk.all, Unit::Ratio)
            .expected(Bound::AtMost(1.5)),
        of_bytes("bytes without code, the SDK", sdk.anonymous),
        of_bytes("bytes without code, ours", ours.anonymous),
        time("a collection, the SDK", sdk_time),
        time("a collection, ours", our_time),
        Figure::new(
            "a collection, ours of the SDK's",
            our_time / sdk_time,
            Unit::Ratio,
        )
        .expected(Bound::AtMost(2.0)),
    ])
}

fn churn(depth: Depth) -> Result<Vec<Figure>, String> {
    let series: i64 = match depth {
        Depth::Quick => 100_000,
        Depth::Full => 1_000_000,
    };
    let registry = Registry::new();
    let counter = registry
        .u64_counter("c")
        .with_cardinality_limit(1000)
        .build()
        .map_err(|error| error.to_string())?;
    let mut snapshot = MetricsSnapshot::new();
    let mut collect = |registry: &Registry| registry.collect_into(&mut snapshot);
    let mut removed = 0;
    let mut turn = |from: i64, to: i64, collect: &mut dyn FnMut(&Registry)| {
        for n in from..to {
            counter.add(1, &set(n));
            removed += i64::from(n >= 100 && counter.remove(&set(n - 100)));
            if n % 500 == 499 {
                collect(&registry);
            }
        }
    };
    // Until the tables are as large as they become.
    turn(0, 20_000, &mut collect);
    let (memory, time) = (Resident::now()?, at_best(|| collect(&registry)));
    turn(20_000, 20_000 + series, &mut collect);
    let grown = Resident::since(memory)?.all / MIB;
    let time_after = at_best(|| collect(&registry));
    if removed != series + 20_000 - 100 {
        return Err(format!("{removed} series were removed of {series}"));
    }
    Ok(vec![
        Figure::new("MiB that memory grew by", grown, Unit::Count).expected(Bound::AtMost(1.0)),
        Figure::new("a collection, before", time, Unit::Nanoseconds),
        Figure::new("a collection, after", time_after, Unit::Nanoseconds),
        Figure::new(
            "a collection, after of before",
            time_after / time,
            Unit::Ratio,
        )
        .expected(Bound::AtMost(1.5)),
    ])
}
