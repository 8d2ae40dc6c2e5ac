//! Reads of cached values allocate nothing, nor do computations without followers.

use perf_cache::{CachedValue, NodeCapacity, PlacementIndex, Requirements, Strategy, TtlCache};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

// One test alone in its file: the count is the process's.
#[test]
fn a_hit_allocates_nothing_and_neither_does_a_lone_computation() {
    let cache: TtlCache<u64, u64> = TtlCache::builder(1000).build().unwrap();
    let value = CachedValue::<u64>::builder().build().unwrap();
    let full: TtlCache<u64, u64> = TtlCache::builder(16).build().unwrap();
    let mut index = PlacementIndex::new();
    for id in 0..100 {
        cache.insert(id, id);
        let vcpus = id as u32;
        index
            .update(NodeCapacity {
                id,
                vcpus,
                memory_mib: 1,
                disk_gib: 1,
            })
            .unwrap();
    }
    value.set(1);
    let (mut reader, mut value_reader) = (cache.reader(), value.reader());
    let mut read = || {
        let mut sum = 0;
        for key in 0..100 {
            sum += cache.get(&key).unwrap() + reader.get(&key).unwrap();
            sum += cache.get_or_compute(&key, || unreachable!("it is there"));
            sum += value.get().unwrap() + value_reader.get().unwrap();
            // More keys than fit: most of them miss.
            sum += full.get_or_compute(&key, || key);
        }
        let vm = Requirements::new(3, 1, 1);
        sum + index.select(&vm, Strategy::MostAvailable).unwrap()
    };
    // The first round fills fronts and tells the policy.
    let expected = read();
    (0..10).for_each(|_| assert_eq!(read(), expected));
    let region = Region::new(ALLOCATOR);
    assert_eq!(read(), expected);
    // The clock's threads, and the test's, may allocate: a hundred times as many reads would show.
    let change = region.change();
    assert!(change.allocations < 10, "{change:?}");
    assert!(full.stats().misses > 500, "{:?}", full.stats());
}
