//! Criterion over the cases of `perf-raft`.

mod support;

fn main() {
    support::run("raft");
}
