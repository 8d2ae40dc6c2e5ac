//! What the wire codec takes from the allocator.

mod messages;

use bytes::Bytes;
use messages::message;
use perf_raft::codec;
use raft::eraftpb::Message;
use rand::SeedableRng;
use rand::rngs::StdRng;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::hint::black_box;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test, since the counter is the process's.
#[test]
fn encoding_allocates_nothing_and_decoding_is_bounded() {
    steady_encoding_allocates_nothing();
    the_worst_frames_take_a_few_megabytes();
}

fn steady_encoding_allocates_nothing() {
    let mut random = StdRng::seed_from_u64(7);
    let messages: Vec<Message> = (0..64).map(|_| message(&mut random)).collect();
    let encode_all = || {
        for message in &messages {
            black_box(codec::encode_pooled(message).expect("it is small"));
        }
    };
    encode_all();
    let allocations = || {
        let region = Region::new(ALLOCATOR);
        encode_all();
        region.change().allocations
    };
    // The test harness has a thread of its own, which may allocate during one run and not during each.
    let fewest = (0..20).map(|_| allocations()).min();
    assert_eq!(fewest, Some(0), "allocations in 64 messages");
}

/// A megabyte of the worst there is takes no more than what the limits say.
fn the_worst_frames_take_a_few_megabytes() {
    let frames = [
        [0x3A, 0x00].repeat(512 * 1024),
        [0x3A, 0x00].repeat(codec::ENTRIES_MAX),
    ];
    for frame in frames.map(Bytes::from) {
        let region = Region::new(ALLOCATOR);
        let _ = black_box(codec::decode(frame));
        let taken = region.change().bytes_allocated;
        assert!(taken < 16 << 20, "a frame took {taken} bytes");
    }
}
