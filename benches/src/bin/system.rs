//! The worker whose global allocator is the system's: what a Rust program has when it chooses nothing.

use std::process::ExitCode;

use perf_benches::case::Allocator;
use perf_benches::worker;

fn main() -> ExitCode {
    worker::serve(worker::Heap::Plain(Allocator::System))
}
