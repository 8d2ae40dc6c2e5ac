//! What one thread may expect of buffers.
#![cfg(not(perf_loom))]

use bytes::{BufMut, Bytes};
use perf_pool::{
    BufferGuard, BufferPool, BytesGuard, CLASS_BYTES_MAX, Config, PoolError, buffer_pool,
};
use std::io::Write;

#[test]
fn a_buffer_is_empty_and_holds_its_hint() {
    let pool = BufferPool::new(Config::new());
    for hint in [
        0,
        1,
        1023,
        1024,
        1025,
        65_536,
        CLASS_BYTES_MAX,
        CLASS_BYTES_MAX + 1,
    ] {
        for _ in 0..3 {
            let mut buffer = pool.get(hint);
            assert!(buffer.get().is_empty());
            assert!(buffer.get().capacity() >= hint);
            buffer.get_mut().extend_from_slice(b"left over");
        }
    }
}

#[test]
fn a_returned_buffer_is_lent_again() {
    let pool = BufferPool::new(Config::new());
    let address = pool.get(3000).get().as_ptr();
    assert_eq!(pool.get(4096).get().as_ptr(), address);
    let stats = pool.stats();
    assert_eq!(
        (stats.classes[2].created, stats.classes[2].thread_hits),
        (1, 1)
    );
    assert_eq!(stats.charged_bytes, 4096);
    assert_eq!((stats.lent_total(), stats.hit_ratio()), (2, 0.5));
}

#[test]
fn every_way_to_write_arrives() {
    let mut buffer = BufferGuard::new(100);
    buffer.write_all(b"ab").expect("a Vec takes all");
    buffer.get_mut().put_u8(b'c');
    buffer.extend(*b"d");
    buffer[0] = b'A';
    assert_eq!(buffer.as_ref(), b"Abcd");
    assert_eq!(
        format!("{buffer:?}"),
        "BufferGuard { len: 4, capacity: 1024 }"
    );
    assert_eq!(Bytes::from(buffer), Bytes::from_static(b"Abcd"));
}

#[test]
fn a_buffer_of_the_wrong_capacity_leaves_and_its_charge_with_it() {
    let pool = BufferPool::new(Config::new());
    let spoil: [fn(&mut Vec<u8>); 5] = [
        |vec| vec.resize(5000, 1),
        |vec| vec.reserve_exact(2048),
        |vec| *vec = Vec::with_capacity(8192),
        |vec| drop(std::mem::take(vec)),
        |vec| vec.shrink_to_fit(),
    ];
    for spoil in spoil {
        spoil(pool.get(1024).get_mut());
    }
    let stats = pool.stats();
    assert_eq!((stats.classes[0].discarded, stats.charged_bytes), (5, 0));
    assert_eq!(stats.classes[0].created, 5);
}

#[test]
fn a_gigabyte_is_served_or_refused_by_the_cap() {
    const GIB: usize = 1 << 30;
    let strict = BufferPool::new(Config::new());
    let error = strict.try_get(GIB).expect_err("above the default cap");
    assert_eq!(
        error,
        PoolError::RequestTooLarge {
            requested_bytes: GIB,
            request_bytes_max: 64 << 20
        }
    );
    assert!(error.to_string().contains("Config::request_bytes_max"));
    assert_eq!(strict.try_get_bytes(GIB).expect_err("the same cap"), error);
    // The infallible way loses nothing: the buffer grows as it is written.
    let mut buffer = strict.get(GIB);
    assert_eq!(buffer.get().capacity(), 0);
    buffer.get_mut().extend_from_slice(b"all there");
    assert_eq!(&buffer[..], b"all there");
    assert_eq!(strict.stats().refused, 3);

    let generous = BufferPool::new(Config::new().request_bytes_max(GIB));
    let buffer = generous.try_get(GIB).expect("within the cap");
    assert!(buffer.get().capacity() >= GIB);
    drop(buffer);
    let stats = generous.stats();
    assert_eq!((stats.oversized, stats.charged_bytes), (1, 0));

    let endless = BufferPool::new(Config::new().request_bytes_max(usize::MAX));
    assert!(matches!(
        endless.try_get(usize::MAX),
        Err(PoolError::OutOfMemory { .. })
    ));
    assert!(matches!(
        BufferGuard::try_new(GIB),
        Err(PoolError::RequestTooLarge { .. })
    ));
}

#[test]
fn an_exhausted_budget_is_served_unpooled() {
    let pool = BufferPool::new(Config::new().budget_bytes(2048));
    let held: Vec<BufferGuard> = (0..5).map(|_| pool.get(1024)).collect();
    assert!(held.iter().all(|buffer| buffer.get().capacity() == 1024));
    drop(held);
    let stats = pool.stats();
    assert_eq!(
        (stats.charged_bytes, stats.charged_bytes_peak),
        (2048, 2048)
    );
    assert_eq!(
        (stats.classes[0].created, stats.classes[0].unpooled),
        (2, 3)
    );
}

#[test]
fn parked_buffers_of_other_classes_make_room() {
    let pool = BufferPool::new(Config::new().budget_bytes(4096).thread_bytes_max(0));
    drop((0..4).map(|_| pool.get(1024)).collect::<Vec<_>>());
    drop(pool.get(4096));
    let stats = pool.stats();
    assert_eq!((stats.classes[0].freed, stats.classes[2].unpooled), (4, 0));
    assert_eq!(stats.charged_bytes_peak, 4096);
}

#[test]
fn trim_frees_what_is_idle() {
    let pool = BufferPool::new(Config::new());
    let lent = pool.get(1024);
    drop((0..300).map(|_| pool.get(1024)).collect::<Vec<_>>());
    drop(pool.try_get_bytes(70_000).expect("small").freeze());
    assert_eq!(pool.trim(), 300 * 1024 + 131_072);
    assert_eq!(pool.stats().charged_bytes, 1024);
    drop(lent);
    assert_eq!(pool.trim(), 1024);
    assert_eq!(pool.trim(), 0);
}

#[test]
fn frozen_bytes_bring_their_memory_back_and_outlive_the_pool() {
    let pool = BufferPool::new(Config::new());
    for len in [0, 1, 1000, 5000, 300_000, CLASS_BYTES_MAX + 5] {
        let mut buffer = pool.get(len);
        buffer.get_mut().resize(len, 7);
        let frozen = buffer.freeze();
        let clone = frozen.clone();
        drop(frozen);
        assert!(clone.len() == len && clone.iter().all(|&byte| byte == 7));
    }
    let idle = pool.stats().charged_bytes;
    assert_eq!(pool.trim(), idle, "all of it came back");
    let mut small = pool.get(10);
    small.get_mut().extend_from_slice(b"small");
    let mut large = pool.get(5000);
    large.get_mut().resize(5000, 9);
    let mut fixed = pool.try_get_bytes(5000).expect("small");
    fixed.put_slice(&[8; 5000]).expect("fits");
    let guard = pool.get(5);
    let (small, large, fixed) = (small.freeze(), large.freeze(), fixed.freeze());
    drop(pool);
    assert_eq!(&small[..], b"small");
    assert!(large.iter().all(|&byte| byte == 9) && fixed.iter().all(|&byte| byte == 8));
    drop((guard, small, large, fixed));
}

#[test]
fn a_bytes_guard_refuses_what_does_not_fit_and_never_grows() {
    let pool = BufferPool::new(Config::new());
    let mut buffer = pool.try_get_bytes(1000).expect("small");
    buffer.put_slice(&[1; 1000]).expect("fits");
    assert_eq!(
        buffer.put_slice(&[2; 25]),
        Err(PoolError::BufferFull {
            requested_bytes: 25,
            remaining_bytes: 24
        })
    );
    assert_eq!(buffer.write(&[2; 25]).expect("short"), 24);
    assert!(buffer.write_all(&[3]).is_err());
    assert_eq!(
        (
            buffer.len(),
            buffer.remaining(),
            buffer.buf_mut().remaining_mut()
        ),
        (1024, 0, 0)
    );
    // `chunk_mut` of a full `BytesMut` reallocates; such a buffer must leave.
    let _ = buffer.buf_mut().chunk_mut();
    drop(buffer);
    let stats = pool.stats();
    assert_eq!((stats.charged_bytes, stats.classes[0].discarded), (0, 1));
}

#[test]
fn busy_frozen_buffers_are_not_lent_and_free_ones_are() {
    let pool = BufferPool::new(Config::new());
    let fill = |byte: u8| {
        let mut buffer = pool.try_get_bytes(2000).expect("small");
        buffer.put_slice(&[byte; 2000]).expect("fits");
        buffer.freeze()
    };
    let held: Vec<Bytes> = (0..40).map(fill).collect();
    for (byte, bytes) in held.iter().enumerate() {
        assert!(bytes.iter().all(|&b| usize::from(b) == byte));
    }
    drop(held);
    let created = pool.stats().classes[1].created;
    assert_eq!(created, 40);
    for _ in 0..40 {
        drop(fill(0));
    }
    assert_eq!(pool.stats().classes[1].created, 40);
    assert_eq!(BytesGuard::try_new(10).expect("small").capacity(), 1024);
    assert!(buffer_pool().stats().budget_bytes > 0);
}

#[test]
fn clear_on_return_reaches_every_path() {
    let pool = BufferPool::new(Config::new().clear_on_return(true));
    for round in 0..3 {
        // That the whole capacity is zero is checked beside `Node::wipe`: reading spare capacity needs `unsafe`.
        let mut buffer = pool.get(1024);
        assert!(buffer.get().is_empty());
        buffer.get_mut().resize(1024, 0xA5);
        drop(buffer);
        let mut buffer = pool.get(1024);
        buffer.get_mut().resize(700, 0xA5);
        let frozen = buffer.freeze();
        assert_eq!(frozen.len(), 700);
        drop(frozen);
        let mut fixed = pool.try_get_bytes(1024).expect("small");
        fixed.put_slice(&[0xA5; 9]).expect("fits");
        drop(fixed.freeze());
        assert_eq!(pool.stats().classes[0].created, 2, "round {round}");
    }
    let mut grown = pool.get(1024);
    grown.get_mut().resize(9000, 0xA5);
    drop(grown);
    drop(pool.get(CLASS_BYTES_MAX + 1));
    assert_eq!(pool.stats().classes[0].discarded, 1);
}

#[test]
fn many_pools_on_one_thread_keep_apart() {
    let pools: Vec<BufferPool> = (0..9).map(|_| BufferPool::new(Config::new())).collect();
    for round in 0..2000 {
        let pool = &pools[round * 7 % pools.len()];
        pool.get(1024).get_mut().push(1);
    }
    for pool in &pools {
        let stats = pool.stats();
        assert_eq!(
            stats.charged_bytes,
            1024 * stats.classes[0].created - 1024 * stats.classes[0].freed
        );
        assert!(stats.hit_ratio() > 0.9, "{stats:?}");
    }
}
