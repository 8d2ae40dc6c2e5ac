//! Criterion over the cases of `perf-atomics`.

mod support;

fn main() {
    support::run("atomics");
}
