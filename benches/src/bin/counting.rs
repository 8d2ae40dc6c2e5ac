//! The worker that counts: its global allocator is the system's, with a counter in front.

use std::alloc::System;
use std::process::ExitCode;

use perf_benches::worker::{self, Allocations};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What the whole process has allocated so far.
///
/// A reallocation is a visit to the allocator like an allocation, so it counts as one.
fn so_far() -> Allocations {
    let stats = GLOBAL.stats();
    Allocations {
        count: (stats.allocations + stats.reallocations) as u64,
        bytes: stats.bytes_allocated as u64,
    }
}

fn main() -> ExitCode {
    worker::serve(worker::Heap::Counting(so_far))
}
