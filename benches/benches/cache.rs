//! Criterion over the cases of `perf-cache`.

mod support;

fn main() {
    support::run("cache");
    support::run("placement");
}
