//! What a pool tells of buffers that do not come back, and what it refuses at its bounds.
#![cfg(not(perf_loom))]

use perf_pool::{BufferPool, Config, PoolError};
use std::thread;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

#[test]
fn a_leaked_guard_stays_counted_as_lent() {
    let pool = BufferPool::new(Config::new());
    let guards: Vec<_> = (0..10).map(|_| pool.get(KIB)).collect();
    assert_eq!(pool.stats().classes[0].lent, 10);
    for (number, guard) in guards.into_iter().enumerate() {
        if number < 3 {
            std::mem::forget(guard);
        }
    }
    let stats = pool.stats();
    assert_eq!((stats.classes[0].lent, stats.classes[0].idle), (3, 7));
    assert_eq!(stats.lent_bytes(), 3 * KIB as u64);
    pool.trim();
    let stats = pool.stats();
    assert_eq!((stats.classes[0].lent, stats.classes[0].idle), (3, 0));
    assert_eq!(stats.charged_bytes, 3 * KIB as u64);
}

#[test]
fn idle_buffers_are_counted_wherever_they_lie() {
    let pool = BufferPool::new(Config::new());
    // More than one thread keeps: its slot, its spare magazine and the shared tier hold some.
    let idle_here = |count: usize| {
        let guards: Vec<_> = (0..count).map(|_| pool.get(KIB)).collect();
        assert_eq!(pool.stats().classes[0].lent, count as u64);
        drop(guards);
        let class = pool.stats().classes[0];
        assert_eq!((class.lent, class.idle), (0, class.created - class.freed));
        class.idle
    };
    assert_eq!(idle_here(300), 300);
    // A thread that ends hands over what it holds.
    thread::scope(|scope| {
        let other = scope.spawn(|| idle_here(100));
        assert_eq!(other.join().expect("no panics"), 300);
    });
    assert_eq!(pool.stats().classes[0].idle, 300);
    assert_eq!(pool.trim(), 300 * KIB as u64);
    assert_eq!(pool.stats().classes[0].idle, 0);
}

/// Ten bytes out of each of `count` frozen messages of 64 KiB.
fn slices(pool: &BufferPool, count: usize) -> Vec<bytes::Bytes> {
    (0..count)
        .map(|_| {
            let mut message = pool.try_get_bytes(64 * KIB).expect("within the budget");
            message.put_slice(&[7; 1000]).expect("fits");
            message.freeze().slice(10..20)
        })
        .collect()
}

#[test]
fn slices_that_pin_large_buffers_are_counted() {
    let pool = BufferPool::new(Config::new());
    let slices = slices(&pool, 9);
    let stats = pool.stats();
    // The last one lies in the thread's slot and counts as lent.
    assert_eq!((stats.classes[6].frozen, stats.classes[6].lent), (8, 1));
    assert_eq!(stats.frozen_bytes(), 8 * 64 * KIB as u64);
    let copies: Vec<_> = slices.iter().map(|slice| pool.copy_bytes(slice)).collect();
    drop(slices);
    pool.trim();
    let stats = pool.stats();
    assert_eq!((stats.classes[6].frozen, stats.classes[6].lent), (0, 0));
    assert!(stats.charged_bytes <= 9 * KIB as u64);
    assert!(copies.iter().all(|copy| copy[..] == [7; 10]));
}

#[test]
fn a_pool_that_refuses_says_what_holds_its_budget() {
    let config = Config::new()
        .budget_bytes(MIB as u64)
        .refuse_beyond_budget(true);
    let pool = BufferPool::new(config);
    let slices = slices(&pool, 8);
    let guards: Vec<_> = (0..8)
        .map(|_| pool.try_get(64 * KIB).expect("the other half"))
        .collect();
    let error = pool.try_get(5000).expect_err("nothing is left");
    let expected = PoolError::BudgetUsedUp {
        requested_bytes: 5000,
        budget_bytes: MIB as u64,
        lent_bytes: 8 * 64 * KIB as u64,
        frozen_bytes: 8 * 64 * KIB as u64,
        idle_bytes: 0,
    };
    assert_eq!(error, expected);
    assert_eq!(pool.try_get_bytes(5000).expect_err("nor here"), expected);
    let text = error.to_string();
    assert!(
        text.contains("1048576") && text.contains("`BufferPool::copy_bytes`"),
        "{text}"
    );
    // `get` serves without memory of the pool, and loses nothing.
    let mut buffer = pool.get(5000);
    assert_eq!(buffer.get().capacity(), 0);
    buffer.get_mut().extend_from_slice(b"still here");
    assert_eq!(&buffer.freeze()[..], b"still here");
    assert_eq!(pool.copy_bytes(b"copied"), &b"copied"[..]);
    // The memory is bounded however many slices live, and comes back with them.
    assert_eq!(pool.stats().charged_bytes_peak, MIB as u64);
    drop(slices);
    assert!(pool.try_get(5000).is_ok());
    drop(guards);
    assert_eq!(
        pool.try_get(MIB + 1).expect_err("above every class"),
        PoolError::RequestTooLarge {
            requested_bytes: MIB + 1,
            request_bytes_max: MIB
        }
    );
}

#[test]
fn a_pool_that_refuses_keeps_a_handle_on_all_that_is_read() {
    let config = Config::new()
        .budget_bytes(MIB as u64)
        .refuse_beyond_budget(true)
        .thread_bytes_max(0);
    let pool = BufferPool::new(config);
    let mut frozen = Vec::new();
    while let Ok(mut message) = pool.try_get_bytes(KIB) {
        message.put_slice(b"x").expect("fits");
        frozen.push(message.freeze());
        assert!(frozen.len() <= 1024, "more than the budget");
    }
    assert_eq!(
        (frozen.len(), pool.stats().charged_bytes),
        (1024, MIB as u64)
    );
    drop(frozen);
    assert!(pool.try_get_bytes(KIB).is_ok());
}

#[test]
fn a_pool_that_refuses_finds_what_is_free_behind_what_is_read() {
    let config = Config::new()
        .budget_bytes(MIB as u64)
        .refuse_beyond_budget(true)
        .thread_bytes_max(0);
    let pool = BufferPool::new(config);
    let freeze = || {
        let mut message = pool.try_get_bytes(KIB)?;
        message.put_slice(b"x")?;
        Ok::<_, PoolError>(message.freeze())
    };
    let mut frozen: Vec<_> = (0..1024).map(|_| freeze().expect("1 MiB")).collect();
    assert!(freeze().is_err());
    // The first ones stay in use, more of them than the shared tier's ring has places.
    frozen.truncate(900);
    for _ in 0..124 {
        frozen.push(freeze().expect("free again"));
    }
    assert!(freeze().is_err());
    assert_eq!(pool.stats().charged_bytes, MIB as u64);
}

#[test]
fn a_detached_buffer_may_come_back() {
    let pool = BufferPool::new(Config::new().budget_bytes(4096));
    let mut buffer = pool.get(4096).detach();
    assert_eq!(pool.stats().charged_bytes, 0);
    buffer.extend_from_slice(b"old");
    let address = buffer.as_ptr();
    pool.adopt(buffer).expect("of a class");
    assert_eq!(
        (pool.stats().charged_bytes, pool.stats().classes[2].idle),
        (4096, 1)
    );
    let again = pool.get(4096);
    assert_eq!((again.get().as_ptr(), again.get().len()), (address, 0));
    // The budget is used up, and these are of no class.
    for capacity in [1024, 1000, 3 << 10, 2 << 20] {
        let buffer = Vec::with_capacity(capacity);
        assert_eq!(
            pool.adopt(buffer).expect_err("refused").capacity(),
            capacity
        );
    }
    drop(again);
    pool.trim();
    assert_eq!(pool.stats().charged_bytes, 0);
}
