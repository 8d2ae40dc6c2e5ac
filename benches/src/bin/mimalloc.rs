//! The worker whose global allocator is mimalloc.

use std::process::ExitCode;

use mimalloc::MiMalloc;
use perf_benches::case::Allocator;
use perf_benches::worker;

#[global_allocator]
static GLOBAL: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    worker::serve(worker::Heap::Plain(Allocator::Mimalloc))
}
