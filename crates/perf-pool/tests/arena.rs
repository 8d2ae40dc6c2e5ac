//! Arenas: values stay apart, memory stays for the next request, bounds hold.
#![cfg(all(not(perf_loom), feature = "arena"))]

use perf_pool::{Arena, ArenaConfig, ArenaPool, PoolError};
use proptest::prelude::*;
use std::sync::mpsc;
use std::thread;

const KIB: usize = 1 << 10;

#[test]
fn memory_stays_for_the_next_request() {
    let pool = ArenaPool::new(ArenaConfig::new());
    let mut held = Vec::new();
    for _ in 0..5 {
        let arena = pool.get();
        for number in 0..1000_u64 {
            assert_eq!(*arena.try_alloc(number).expect("small"), number);
        }
        drop(arena);
        held.push(pool.stats().pooled_bytes);
    }
    // The second request's block holds all that the first needed several for.
    assert!(held[1..].iter().all(|bytes| *bytes == held[1]), "{held:?}");
    assert!(held[1] >= 8000);
    let stats = pool.stats();
    assert_eq!((stats.created, stats.arenas, stats.outgrown), (1, 1, 0));
    assert_eq!(pool.trim(), 1);
    assert_eq!((pool.stats().arenas, pool.stats().pooled_bytes), (0, 0));
}

#[test]
fn an_arena_that_outgrew_its_bound_is_freed() {
    let pool = ArenaPool::new(ArenaConfig::new().keep_bytes_max(64 * KIB));
    let arena = pool.get();
    arena
        .try_alloc_slice(&[1_u8; 256 * KIB])
        .expect("within the request's bound");
    drop(arena);
    let stats = pool.stats();
    assert_eq!(
        (stats.outgrown, stats.arenas, stats.pooled_bytes),
        (1, 0, 0)
    );
    drop(pool.get());
    assert_eq!(pool.stats().created, 2);
}

#[test]
fn a_request_is_bounded_and_the_error_says_by_what() {
    let pool = ArenaPool::new(ArenaConfig::new().request_bytes_max(16 * KIB));
    let arena = pool.get();
    let mut placed = 0;
    let error = loop {
        match arena.try_alloc([7_u8; 512]) {
            Ok(_) => placed += 1,
            Err(error) => break error,
        }
        assert!(placed <= 32, "beyond the bound");
    };
    let PoolError::ArenaFull {
        requested_bytes,
        held_bytes,
        request_bytes_max,
    } = error
    else {
        panic!("another error: {error}");
    };
    assert_eq!((requested_bytes, request_bytes_max), (512, 16 * KIB));
    assert!(
        held_bytes <= 16 * KIB && placed >= 16,
        "{held_bytes} {placed}"
    );
    assert!(
        error
            .to_string()
            .contains("`ArenaConfig::request_bytes_max`")
    );
    assert!(arena.try_alloc_str(&"x".repeat(20 * KIB)).is_err());
    drop(arena);
    // The next request starts afresh.
    assert!(pool.get().try_alloc([7_u8; 512]).is_ok());
}

#[test]
fn a_bound_below_the_first_block_holds() {
    let pool = ArenaPool::new(ArenaConfig::new().request_bytes_max(256));
    let arena = pool.get();
    assert!(arena.try_alloc([0_u8; 300]).is_err());
    assert!(arena.held_bytes() <= 256, "{arena:?}");
}

#[test]
fn beyond_the_bound_arenas_are_made_and_freed() {
    let pool = ArenaPool::new(ArenaConfig::new().arenas_max(1));
    let arenas = [pool.get(), pool.get(), pool.get()];
    let stats = pool.stats();
    assert_eq!((stats.arenas, stats.created, stats.unpooled), (1, 1, 2));
    let bytes = stats.pooled_bytes;
    drop(arenas);
    assert_eq!((pool.stats().arenas, pool.stats().pooled_bytes), (1, bytes));
}

#[test]
fn arenas_go_to_other_threads_and_outlive_their_pool() {
    let pool = ArenaPool::new(ArenaConfig::new());
    let (send, receive) = mpsc::channel::<Arena>();
    let reader = thread::spawn(move || {
        receive
            .into_iter()
            .map(|arena| *arena.try_alloc(1_u32).expect("small"))
            .sum::<u32>()
    });
    for _ in 0..1000 {
        let arena = pool.get();
        arena.try_alloc_str("request").expect("small");
        send.send(arena).expect("the reader lives");
    }
    let last = pool.get();
    drop(pool);
    send.send(last).expect("the reader lives");
    drop(send);
    assert_eq!(reader.join().expect("no panics"), 1001);
}

#[test]
fn values_that_need_dropping_go_through_the_arena_below() {
    let pool = ArenaPool::new(ArenaConfig::new());
    let arena = pool.get();
    let numbers = arena
        .bump()
        .alloc_slice_fill_iter((0..5).map(|number| number * number));
    assert_eq!(numbers, [0, 1, 4, 9, 16]);
}

#[test]
fn bounds_of_nothing_and_of_all_hold() {
    for bytes in [0, 1, isize::MAX as usize, usize::MAX] {
        let bounds = [
            ArenaConfig::new().first_bytes(bytes),
            ArenaConfig::new().keep_bytes_max(bytes),
            ArenaConfig::new().arenas_max(bytes),
            ArenaConfig::new().thread_arenas_max(bytes),
            ArenaConfig::new()
                .first_bytes(bytes.min(KIB))
                .request_bytes_max(bytes)
                .keep_bytes_max(bytes),
        ];
        for config in bounds {
            let pool = ArenaPool::new(config.clone());
            for _ in 0..3 {
                let arena = pool.get();
                let placed = arena
                    .try_alloc_slice(&[7_u8; 100])
                    .map(|slice| slice.to_vec());
                match placed {
                    Ok(slice) => assert_eq!(slice, [7; 100]),
                    Err(error) => assert!(error.to_string().contains("of 0 that") || bytes == 1),
                }
            }
            pool.trim();
            assert_eq!(pool.stats().pooled_bytes, 0, "{config:?}");
        }
    }
}

#[test]
fn a_limit_that_a_user_lifted_is_back_for_the_next() {
    let pool = ArenaPool::new(ArenaConfig::new().request_bytes_max(16 * KIB));
    let arena = pool.get();
    arena.bump().set_allocation_limit(None);
    drop(arena);
    assert!(pool.get().try_alloc_slice(&[7_u8; 64 * KIB]).is_err());
    assert_eq!(pool.stats().created, 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Values of one request never overlap, whatever the arena held before.
    #[test]
    fn values_stay_apart(requests in prop::collection::vec(prop::collection::vec(0..3000_usize, 0..30), 1..8)) {
        let pool = ArenaPool::new(ArenaConfig::new().keep_bytes_max(32 * KIB));
        for (number, sizes) in requests.iter().enumerate() {
            let arena = pool.get();
            let mut slices = Vec::new();
            for (at, size) in sizes.iter().enumerate() {
                let fill = (number * 31 + at) as u8;
                let slice = arena.try_alloc_slice(&vec![fill; *size]).expect("small");
                let word = arena.try_alloc(at as u64).expect("small");
                slices.push((fill, slice, word));
            }
            for (at, (fill, slice, word)) in slices.iter().enumerate() {
                prop_assert!(slice.iter().all(|byte| byte == fill));
                prop_assert_eq!(**word, at as u64);
            }
            drop(slices);
            drop(arena);
            let stats = pool.stats();
            prop_assert!(stats.pooled_bytes <= 32 * KIB as u64);
            prop_assert_eq!(stats.created - stats.outgrown, stats.arenas);
        }
    }
}
