//! Code that knows only OpenTelemetry's API, or only the macros of `metrics`, records to a registry.

#[cfg(feature = "meter-provider")]
mod meter_provider {
    use opentelemetry::metrics::{Meter, MeterProvider};
    use opentelemetry::{InstrumentationScope, KeyValue};
    use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};
    use perf_metrics::meter_provider::RegistryMeterProvider;
    use perf_metrics::{MetricsSnapshot, Registry, Value};
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    fn set(place: usize) -> Vec<KeyValue> {
        let [a, b] = [KeyValue::new("a", "x"), KeyValue::new("b", 2)];
        match place {
            0 => vec![],
            1 => vec![a, b],
            2 => vec![b, a],
            _ => vec![KeyValue::new("a", String::from("owned"))],
        }
    }

    /// The same program for both: it knows the API alone.
    fn run(meter: &Meter, ops: &[(u8, u8, usize)]) {
        let counter = meter.u64_counter("counter").with_unit("By").build();
        let up_down = meter.f64_up_down_counter("up.down").build();
        let gauge = meter.i64_gauge("gauge").build();
        let histogram = meter.f64_histogram("histogram").build();
        let own = meter
            .u64_histogram("boundaries")
            .with_boundaries(vec![1.0, 100.0])
            .build();
        let _observed = meter
            .u64_observable_counter("observed")
            .with_callback(|observer| {
                observer.observe(7, &set(1));
                observer.observe(8, &set(0));
            })
            .build();
        for (op, value, place) in ops {
            let (value, set) = (*value, &set(*place));
            match op {
                // Made anew at each record, as much code does.
                0 => meter
                    .u64_counter("counter")
                    .with_unit("By")
                    .build()
                    .add(value.into(), set),
                1 => up_down.add(f64::from(value) - 100.0, set),
                2 => gauge.record(i64::from(value) - 100, set),
                3 => histogram.record(value.into(), set),
                4 => own.record(value.into(), set),
                _ => counter.bind(set).add(value.into()),
            }
        }
    }

    /// As in the SDK, whose instruments are exported for as long as the provider is there.
    #[test]
    fn an_instrument_that_no_handle_is_left_of_goes_on_counting() {
        let registry = Registry::new();
        let provider = RegistryMeterProvider::new(&registry);
        for round in 1..10 {
            let meter = provider.meter("m");
            meter.u64_counter("c").build().add(1, &set(1));
            meter.f64_histogram("h").build().record(1.0, &[]);
            for _ in 0..3 {
                let snapshot = registry.collect();
                let series = |name: &str, set: &[KeyValue]| {
                    snapshot.metric(name).unwrap().find(set).unwrap().clone()
                };
                assert_eq!(series("c", &set(1)).value(), Some(Value::U64(round)));
                assert_eq!(series("h", &[]).histogram().unwrap().count(), round);
            }
        }
    }

    /// Name and attributes to numbers; sums of zero left out, as this crate leaves out those that were never recorded.
    type Points = BTreeMap<(String, String), Vec<f64>>;

    fn text(set: impl Iterator<Item = KeyValue>) -> String {
        let mut pairs: Vec<_> = set.map(|kv| format!("{}={}", kv.key, kv.value)).collect();
        pairs.sort();
        pairs.join(",")
    }

    fn points(snapshot: &MetricsSnapshot) -> Points {
        let mut all = Points::new();
        for metric in snapshot.metrics() {
            assert_eq!(metric.descriptor().scope().unwrap().name(), "lib");
            for series in metric.series().iter().filter(|series| series.is_recorded()) {
                let numbers = match (series.value(), series.histogram()) {
                    (Some(value), _) => vec![value.as_f64()],
                    (_, Some(h)) => [h.count() as f64, h.sum().as_f64()]
                        .into_iter()
                        .chain(h.buckets().iter().map(|n| *n as f64))
                        .collect(),
                    _ => continue,
                };
                let key = (
                    metric.descriptor().name().to_owned(),
                    text(series.attributes().iter().cloned()),
                );
                assert!(all.insert(key, numbers).is_none(), "a series twice");
            }
        }
        all.retain(|_, numbers| *numbers != [0.0]);
        all
    }

    fn points_of_sdk(exporter: &InMemoryMetricExporter) -> Points {
        use opentelemetry_sdk::metrics::data::{AggregatedMetrics as A, MetricData as D};
        fn of<T: Copy>(data: &D<T>, float: fn(T) -> f64) -> Vec<(String, Vec<f64>)> {
            match data {
                D::Sum(sum) => sum
                    .data_points()
                    .map(|p| (text(p.attributes().cloned()), vec![float(p.value())]))
                    .collect(),
                D::Gauge(gauge) => gauge
                    .data_points()
                    .map(|p| (text(p.attributes().cloned()), vec![float(p.value())]))
                    .collect(),
                D::Histogram(histogram) => histogram
                    .data_points()
                    .map(|p| {
                        let mut numbers = vec![p.count() as f64, float(p.sum())];
                        numbers.extend(p.bucket_counts().map(|n| n as f64));
                        (text(p.attributes().cloned()), numbers)
                    })
                    .collect(),
                D::ExponentialHistogram(_) => panic!("no view asks for it"),
            }
        }
        let finished = exporter.get_finished_metrics().unwrap();
        let mut all = Points::new();
        let metrics = finished.last().unwrap().scope_metrics();
        for metric in metrics.flat_map(|scope| scope.metrics()) {
            let found = match metric.data() {
                A::F64(data) => of(data, |v| v),
                A::U64(data) => of(data, |v| v as f64),
                A::I64(data) => of(data, |v| v as f64),
            };
            for (attributes, numbers) in found {
                all.insert((metric.name().to_owned(), attributes), numbers);
            }
        }
        all.retain(|_, numbers| *numbers != [0.0]);
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_program_of_the_api_counts_what_the_sdk_counts(
            ops in proptest::collection::vec((0u8..6, 0u8..200, 0usize..4), 0..80)
        ) {
            let exporter = InMemoryMetricExporter::default();
            let reader = PeriodicReader::builder(exporter.clone()).build();
            let sdk = SdkMeterProvider::builder().with_reader(reader).build();
            let registry = Registry::new();
            let ours = RegistryMeterProvider::new(&registry);
            run(&sdk.meter("lib"), &ops);
            run(&ours.meter("lib"), &ops);
            sdk.force_flush().unwrap();
            let snapshot = registry.collect();
            let mut ours = points(&snapshot);
            let mut theirs = points_of_sdk(&exporter);
            // Gauges that are zero are values; both were compared above by the same rule.
            for all in [&mut ours, &mut theirs] {
                for numbers in all.values_mut() {
                    // The sum of floats may be rounded otherwise.
                    numbers.iter_mut().for_each(|n| *n = (*n * 1e6).round());
                }
            }
            prop_assert_eq!(ours, theirs);
        }
    }

    /// As the specification has it; the SDK sorts in no stable order and keeps either.
    #[test]
    fn of_a_repeated_key_the_last_value_counts() {
        let registry = Registry::new();
        let meter = RegistryMeterProvider::new(&registry).meter("lib");
        let counter = meter.u64_counter("c").build();
        let [first, other, last] = [("k", 1), ("a", 2), ("k", 3)].map(|(k, v)| KeyValue::new(k, v));
        counter.add(1, &[first.clone(), other.clone(), last.clone()]);
        counter.bind(&[last.clone(), other.clone()]).add(2);
        counter.bind(&[first, last.clone(), other.clone()]).add(4);
        let snapshot = registry.collect();
        let found = snapshot.metric("c").unwrap().find(&[other, last]);
        assert_eq!(found.unwrap().value(), Some(Value::U64(7)));
    }

    #[test]
    fn scopes_are_part_of_the_identity() {
        let registry = Registry::new();
        let provider = RegistryMeterProvider::new(&registry);
        let scope = |version: &'static str| {
            InstrumentationScope::builder("lib")
                .with_version(version)
                .with_schema_url("https://example.com/1")
                .with_attributes([KeyValue::new("k", "v")])
                .build()
        };
        for (n, version) in [(1, "1"), (2, "2"), (4, "1")] {
            let meter = provider.meter_with_scope(scope(version));
            meter.u64_counter("c").build().add(n, &[]);
        }
        let snapshot = registry.collect();
        let found: Vec<_> = snapshot
            .metrics()
            .iter()
            .map(|metric| {
                let scope = metric.descriptor().scope().unwrap();
                assert_eq!(scope.schema_url(), "https://example.com/1");
                assert_eq!(scope.attributes(), [KeyValue::new("k", "v")]);
                (scope.version().to_owned(), metric.series()[0].value())
            })
            .collect();
        let expected = [("1", 5), ("2", 2)].map(|(v, n)| (v.to_owned(), Some(Value::U64(n))));
        assert_eq!(found, expected);
    }

    #[test]
    fn conflicts_and_faults_are_told_and_lose_nothing_else() {
        let registry = Registry::new();
        let told = Arc::new(Mutex::new(0));
        let tell = Arc::clone(&told);
        registry.set_error_handler(move |_| *tell.lock().unwrap() += 1);
        let meter = RegistryMeterProvider::new(&registry).meter("lib");
        let by_unit = |unit: &'static str| meter.u64_counter("c").with_unit(unit).build();
        by_unit("By").add(1, &[]);
        assert_eq!(*told.lock().unwrap(), 0);
        // Of another unit, another kind, then the same as the first but for its description.
        by_unit("s").add(2, &[]);
        meter.f64_histogram("c").build().record(3.0, &[]);
        assert_eq!(*told.lock().unwrap(), 2);
        meter
            .u64_counter("C")
            .with_unit("By")
            .with_description("said now")
            .build()
            .add(4, &[]);
        meter.u64_counter("not a name").build().add(5, &[]);
        assert_eq!(*told.lock().unwrap(), 3);
        let snapshot = registry.collect();
        let values: Vec<_> = snapshot
            .metrics()
            .iter()
            .map(|metric| metric.series()[0].value())
            .collect();
        let some = |n| Some(Value::U64(n));
        assert_eq!(values, [some(5), some(2), None]);
        let histogram = snapshot.metrics()[2].series()[0].histogram().unwrap();
        assert_eq!(histogram.count(), 1);
    }

    #[test]
    fn histograms_are_exponential_where_that_is_chosen() {
        let registry = Registry::new();
        let provider = RegistryMeterProvider::new(&registry).with_exponential_histograms();
        let meter = provider.meter("lib");
        meter.f64_histogram("h").build().record(1.0, &[]);
        let boundaries = vec![1.0];
        meter
            .f64_histogram("own")
            .with_boundaries(boundaries)
            .build()
            .record(1.0, &[]);
        let snapshot = registry.collect();
        let histogram = |name| {
            snapshot.metric(name).unwrap().series()[0]
                .histogram()
                .unwrap()
        };
        assert!(histogram("h").scale().is_some());
        assert_eq!(histogram("own").boundaries(), Some(&[1.0][..]));
    }
}

#[cfg(feature = "recorder")]
mod recorder {
    use metrics::{Unit, counter, describe_counter, gauge, histogram, with_local_recorder};
    use perf_metrics::recorder::{Matcher, Recorder};
    use perf_metrics::{Buckets, KeyValue, MetricsSnapshot, Registry, Temporality, Value};
    use std::time::Duration;

    fn value(snapshot: &MetricsSnapshot, name: &str, attributes: &[KeyValue]) -> Option<Value> {
        let series = snapshot.metric(name)?.find(attributes)?;
        series.value().filter(|_| series.is_recorded())
    }

    #[test]
    fn macros_count_by_name_and_labels_in_any_order_from_any_thread() {
        let registry = Registry::new();
        let recorder = Recorder::builder(&registry).build();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    with_local_recorder(&recorder, || {
                        for n in 0..1000u64 {
                            counter!("c", "a" => "x", "b" => "y").increment(1);
                            counter!("c", "b" => "y", "a" => "x").increment(1);
                            counter!("c", "n" => (n % 700).to_string()).increment(2);
                            gauge!("g").set(n as f64);
                            histogram!("h", "a" => "x").record(n as f64);
                        }
                    });
                });
            }
        });
        let snapshot = registry.collect();
        let both = [KeyValue::new("a", "x"), KeyValue::new("b", "y")];
        assert_eq!(value(&snapshot, "c", &both), Some(Value::U64(8000)));
        let numbered = (0..700).map(|n: i64| {
            let set = [KeyValue::new("n", n.to_string())];
            value(&snapshot, "c", &set).unwrap().as_f64()
        });
        assert_eq!(numbered.sum::<f64>(), 8000.0);
        assert_eq!(value(&snapshot, "g", &[]), Some(Value::F64(999.0)));
        let h = snapshot.metric("h").unwrap();
        let h = h.find(&[KeyValue::new("a", "x")]).unwrap();
        assert_eq!(h.histogram().unwrap().count(), 4000);
    }

    #[test]
    fn handles_raise_add_and_take_away() {
        let registry = Registry::new();
        let recorder = Recorder::builder(&registry).build();
        let (counter, gauge, histogram) = with_local_recorder(&recorder, || {
            (counter!("c"), gauge!("g", "k" => "v"), histogram!("h"))
        });
        counter.absolute(10);
        counter.absolute(7);
        counter.increment(1);
        counter.absolute(11);
        gauge.set(5.0);
        gauge.increment(2.5);
        gauge.decrement(1.0);
        histogram.record_many(2.0, 3);
        let snapshot = registry.collect();
        assert_eq!(value(&snapshot, "c", &[]), Some(Value::U64(11)));
        let kv = [KeyValue::new("k", "v")];
        assert_eq!(value(&snapshot, "g", &kv), Some(Value::F64(6.5)));
        let h = snapshot.metric("h").unwrap().series()[0].histogram();
        assert_eq!(h.unwrap().count(), 3);
    }

    #[test]
    fn names_units_descriptions_and_buckets() {
        let registry = Registry::new();
        registry.set_error_handler(|_| {});
        let recorder = Recorder::builder(&registry)
            .with_buckets(
                Matcher::Suffix("_seconds".into()),
                Buckets::Explicit(vec![0.5, 1.0]),
            )
            .build();
        with_local_recorder(&recorder, || {
            describe_counter!("9 lives", Unit::Bytes, "of a cat");
            counter!("9 lives").increment(1);
            histogram!("wait_seconds").record(0.7);
            histogram!("size").record(0.7);
            // One name, two kinds.
            counter!("both").increment(1);
            gauge!("both").set(2.0);
        });
        let snapshot = registry.collect();
        let lives = snapshot.metric("m9_lives").unwrap().descriptor();
        assert_eq!((lives.unit(), lives.description()), ("By", "of a cat"));
        let histogram = |name| {
            snapshot.metric(name).unwrap().series()[0]
                .histogram()
                .unwrap()
        };
        assert_eq!(
            histogram("wait_seconds").boundaries(),
            Some(&[0.5, 1.0][..])
        );
        assert!(histogram("size").scale().is_some());
        let named = snapshot.metrics().iter();
        let both = named.filter(|metric| metric.descriptor().name() == "both");
        assert_eq!(both.count(), 2);
    }

    #[test]
    fn labels_without_end_are_the_overflow_and_take_no_memory() {
        let registry = Registry::new();
        let recorder = Recorder::builder(&registry)
            .with_cardinality_limit(10)
            .build();
        with_local_recorder(&recorder, || {
            for n in 0..1000 {
                counter!("c", "n" => n.to_string()).increment(1);
            }
        });
        let snapshot = registry.collect();
        let over = [KeyValue::new("otel.metric.overflow", true)];
        assert_eq!(value(&snapshot, "c", &over), Some(Value::U64(990)));
    }

    #[test]
    fn idle_series_leave_those_of_kept_handles_stay_and_what_returns_counts_anew() {
        let registry = Registry::new();
        let recorder = Recorder::builder(&registry)
            .with_idle_timeout(Duration::from_millis(50))
            .build();
        let mut reader = registry.reader(Temporality::Delta).unwrap();
        let kept = with_local_recorder(&recorder, || {
            counter!("c", "n" => "1").increment(1);
            counter!("plain").increment(1);
            counter!("c", "n" => "2")
        });
        kept.increment(1);
        let is_there = |snapshot: &MetricsSnapshot, n: &'static str| {
            let metric = snapshot.metric("c");
            metric.is_some_and(|metric| metric.find(&[KeyValue::new("n", n)]).is_some())
        };
        let mut turns = 0;
        while {
            let snapshot = reader.collect();
            is_there(snapshot, "1") || snapshot.metric("plain").is_some()
        } {
            std::thread::sleep(Duration::from_millis(10));
            turns += 1;
            assert!(turns < 3000, "an idle series never leaves");
        }
        assert!(
            is_there(reader.collect(), "2"),
            "the program has its handle"
        );
        kept.increment(3);
        with_local_recorder(&recorder, || counter!("c", "n" => "1").increment(5));
        let snapshot = reader.collect();
        let set = |n: &'static str| [KeyValue::new("n", n)];
        assert_eq!(value(snapshot, "c", &set("2")), Some(Value::U64(3)));
        assert_eq!(value(snapshot, "c", &set("1")), Some(Value::U64(5)));
    }

    /// Alone in this process to be installed.
    #[test]
    fn one_recorder_is_installed() {
        let registry = perf_metrics::recorder::install().unwrap();
        counter!("installed").increment(2);
        let found = value(&registry.collect(), "installed", &[]);
        assert_eq!(found, Some(Value::U64(2)));
        let again = perf_metrics::recorder::install().unwrap_err();
        assert!(again.to_string().contains("already"));
    }
}
