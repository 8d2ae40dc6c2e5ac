//! Criterion over the cases of `perf-pool`.

mod support;

fn main() {
    support::run("pool");
}
