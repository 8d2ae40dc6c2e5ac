//! Criterion over one group of the list of cases.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use perf_benches::case::{Allocator, Path};
use perf_benches::cases;

/// Samples per path: fewer than criterion's 100, since comparing is the paired runner's work.
const SAMPLES: usize = 50;
/// Time before and time of the measurement of one path.
const WARM_UP_MS: u64 = 500;
const MEASUREMENT_MS: u64 = 2_000;

/// Runs every path of every case of `group` that runs under this process's allocator.
pub(crate) fn run(group: &str) {
    let mut criterion = Criterion::default()
        .sample_size(SAMPLES)
        .warm_up_time(Duration::from_millis(WARM_UP_MS))
        .measurement_time(Duration::from_millis(MEASUREMENT_MS))
        .configure_from_args();
    for case in cases::all().iter().filter(|case| case.group() == group) {
        let mut target = criterion.benchmark_group(case.id);
        measure(&mut target, "before", &case.before);
        measure(&mut target, "after", &case.after);
        for peer in &case.peers {
            measure(&mut target, peer.name, peer);
        }
        target.finish();
    }
    criterion.final_summary();
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

/// The state is built when the path is first run, so that a filter also filters the preparation.
fn measure(group: &mut Group<'_>, name: &str, path: &Path) {
    if path.allocator != Allocator::System {
        return;
    }
    let mut run = None;
    group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
        let run = run.get_or_insert_with(path.prepare);
        bencher.iter_custom(|iters| black_box(run(iters)));
    });
}
