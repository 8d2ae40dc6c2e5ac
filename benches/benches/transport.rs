//! Criterion over the cases of `perf-transport`.

mod support;

fn main() {
    support::run("transport");
}
