//! Nothing allocates in steady state. One test only: the counter is the whole process's.
#![cfg(not(perf_loom))]

use perf_pool::{BufferGuard, BytesGuard, ObjectPool};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn allocations(name: &str, allowed: usize, mut operation: impl FnMut()) {
    // The harness's own thread may allocate meanwhile, so one clean round of three is enough.
    let rounds = (0..3).map(|_| {
        for _ in 0..300 {
            operation();
        }
        let region = Region::new(ALLOCATOR);
        for _ in 0..1000 {
            operation();
        }
        let change = region.change();
        change.allocations + change.reallocations
    });
    let least = rounds.min().expect("three rounds");
    assert!(
        least <= allowed,
        "{name}: {least} allocations in 1000 operations"
    );
}

#[test]
fn steady_state_allocates_nothing() {
    for size in [1, 1024, 5000, 65_536, 1 << 20] {
        allocations("get and return", 0, || {
            BufferGuard::new(size).get_mut().push(1);
        });
        allocations("freeze", 0, || {
            let mut buffer = BytesGuard::try_new(size).expect("small");
            buffer
                .put_slice(b"payload")
                .or_else(|_| buffer.put_slice(b"p"))
                .expect("fits");
            let frozen = buffer.freeze();
            drop((frozen.clone(), frozen));
        });
    }
    let mut held = Vec::with_capacity(64);
    allocations("burst of 64", 0, || {
        held.extend((0..64).map(|_| BufferGuard::new(1024)));
        held.clear();
    });
    let mut frozen = Vec::with_capacity(32);
    allocations("32 frozen at once", 0, || {
        for _ in 0..32 {
            let mut buffer = BytesGuard::try_new(1024).expect("small");
            buffer.put_slice(b"payload").expect("fits");
            frozen.push(buffer.freeze());
        }
        frozen.clear();
    });
    allocations("freeze a small Vec", 0, || {
        let mut buffer = BufferGuard::new(1024);
        buffer.get_mut().extend_from_slice(b"payload");
        drop(buffer.freeze());
    });
    allocations("freeze a large Vec", 1000, || {
        let mut buffer = BufferGuard::new(65_536);
        buffer.get_mut().resize(65_536, 1);
        drop(buffer.freeze());
    });
    let pool = ObjectPool::builder(|| [0_u8; 64]).build();
    allocations("object", 0, || drop(pool.get()));
    let several = ObjectPool::builder(|| [0_u8; 64]).build();
    allocations("4 objects", 0, || {
        drop([several.get(), several.get(), several.get(), several.get()])
    });
}
