//! Criterion over the cases of `perf-metrics`.

mod support;

fn main() {
    support::run("metrics");
}
