//! The pool's handle.

use crate::bytes_guard::BytesGuard;
use crate::bytes_node::BytesNode;
use crate::class::{CLASS_BYTES_MAX, class_of};
use crate::config::Config;
use crate::core::{Class, Core, add};
use crate::error::PoolError;
use crate::guard::BufferGuard;
use crate::hot;
use crate::local;
use crate::node::Node;
use crate::primitive::cold::LazyLock;
use crate::stats::PoolStats;
use bytes::BytesMut;
use std::sync::Arc;

/// A pool of byte buffers in power-of-two classes from 1 KiB to 1 MiB.
///
/// Each thread keeps idle buffers of its own; whole chains of them move between threads through a
/// bounded shared tier. Share a pool by reference or in an `Arc`; most programs need only the global
/// one, [`buffer_pool`].
///
/// A thread has a tier for the global pool and for three others at a time; which ones share a place is fixed by
/// the order of their creation. Pools beyond that use the shared tier, which is slower.
///
/// Dropping a pool frees what is idle in its shared tier and on this thread. Guards and frozen [`Bytes`](bytes::Bytes)
/// stay valid; their memory is freed when they are dropped. Other threads free what they hold when they next run
/// out of buffers in any pool, or end.
///
/// ```
/// use perf_pool::{BufferPool, Config};
///
/// let pool = BufferPool::new(Config::new().budget_bytes(4 << 20));
/// let mut buffer = pool.get(1500);
/// buffer.get_mut().extend_from_slice(b"hello");
/// drop(buffer);
/// assert_eq!(pool.stats().charged_bytes, 2048);
/// ```
#[derive(Debug)]
pub struct BufferPool {
    core: Arc<Core>,
}

static GLOBAL: LazyLock<BufferPool> = LazyLock::new(|| BufferPool {
    core: Core::global(Config::new()),
});

/// The global pool, with the default [`Config`]. [`BufferGuard::new`] and [`BytesGuard::try_new`] use it.
#[must_use]
pub fn buffer_pool() -> &'static BufferPool {
    &GLOBAL
}

impl BufferPool {
    /// A pool of its own.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            core: Core::registered(config),
        }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The class that serves a request, or `None` if it is above the largest.
    #[inline]
    fn class_for(&self, size_hint: usize) -> Option<&Class> {
        if size_hint > CLASS_BYTES_MAX {
            return None;
        }
        self.core.classes.get(class_of(size_hint))
    }

    /// Lends an empty buffer with room for `size_hint` bytes. Never fails and never loses data: a request that
    /// [`BufferPool::try_get`] refuses is served with a buffer of capacity 0, which grows as it is written, like any `Vec`.
    #[inline]
    #[must_use]
    pub fn get(&self, size_hint: usize) -> BufferGuard {
        match self.class_for(size_hint) {
            Some(class) => {
                BufferGuard::holding(hot::take(class.tag).unwrap_or_else(|| self.get_slow(class)))
            }
            None => self.get_oversized(size_hint),
        }
    }

    /// Lends an empty buffer with room for `size_hint` bytes. Above 1 MiB it is not pooled.
    ///
    /// # Errors
    /// [`PoolError::RequestTooLarge`] above [`Config::request_bytes_max`], [`PoolError::OutOfMemory`] if
    /// the allocator refuses a request above 1 MiB.
    #[inline]
    pub fn try_get(&self, size_hint: usize) -> Result<BufferGuard, PoolError> {
        if size_hint > CLASS_BYTES_MAX || size_hint > self.core.config.request_bytes_max {
            return self.try_get_oversized(size_hint);
        }
        Ok(self.get(size_hint))
    }

    #[inline]
    pub(crate) fn get_global(size_hint: usize) -> BufferGuard {
        if size_hint > CLASS_BYTES_MAX {
            return buffer_pool().get_oversized(size_hint);
        }
        let class = class_of(size_hint);
        BufferGuard::holding(hot::take_global(class).unwrap_or_else(|| slow_global(class)))
    }

    #[cold]
    #[inline(never)]
    fn get_slow(&self, class: &Class) -> Box<Node> {
        local::refill(&self.core, class).unwrap_or_else(|| self.core.create(class))
    }

    #[cold]
    fn get_oversized(&self, size_hint: usize) -> BufferGuard {
        self.try_get_oversized(size_hint)
            .unwrap_or_else(|_| self.lend_unpooled(Vec::new()))
    }

    #[cold]
    fn try_get_oversized(&self, size_hint: usize) -> Result<BufferGuard, PoolError> {
        let vec = check_size(&self.core, size_hint).and_then(|()| {
            let mut vec = Vec::new();
            vec.try_reserve_exact(size_hint)
                .map_err(|_| PoolError::OutOfMemory {
                    requested_bytes: size_hint,
                })?;
            Ok(vec)
        });
        match vec {
            Ok(vec) => {
                add(&self.core.oversized, 1);
                Ok(self.lend_unpooled(vec))
            }
            Err(error) => {
                add(&self.core.refused, 1);
                Err(error)
            }
        }
    }

    fn lend_unpooled(&self, vec: Vec<u8>) -> BufferGuard {
        let tag = self.core.tag_of(&self.core.classes[0]).unpooled();
        BufferGuard::holding(Node::holding(vec, tag))
    }

    /// Lends an empty buffer of fixed capacity, at least `size_hint`, that freezes without copying or
    /// allocating. Above 1 MiB, or with the budget used up, it is not pooled.
    ///
    /// # Errors
    /// [`PoolError::RequestTooLarge`] above [`Config::request_bytes_max`].
    #[inline]
    pub fn try_get_bytes(&self, size_hint: usize) -> Result<BytesGuard, PoolError> {
        lend_bytes(&self.core, size_hint)
    }

    /// What the pool holds and did. Takes a lock and reads every thread's counters: for monitoring, not for hot paths.
    /// Exact while nothing moves; counts of running threads may lag each other by the operations in flight.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        PoolStats::of(&self.core)
    }

    /// Frees the idle memory of the shared tier and of this thread, and says how many bytes that were. Other
    /// threads keep their idle buffers, at most [`Config::thread_bytes_max`] each. Frozen buffers that are
    /// still read stay.
    pub fn trim(&self) -> u64 {
        local::flush(&self.core);
        let mut bytes = 0;
        for class in &self.core.classes {
            // As many as there are now: others may park meanwhile.
            for _ in 0..class.depot.len() {
                let Some(chain) = class.depot.take() else {
                    break;
                };
                bytes += self.core.free_chain(class, chain);
            }
            bytes += self.core.trim_retained(class);
        }
        bytes
    }
}

/// Serves a request for a [`BytesGuard`].
#[inline]
pub(crate) fn lend_bytes(core: &Arc<Core>, size_hint: usize) -> Result<BytesGuard, PoolError> {
    if size_hint > CLASS_BYTES_MAX || size_hint > core.config.request_bytes_max {
        return lend_bytes_oversized(core, size_hint);
    }
    let class = &core.classes[class_of(size_hint)];
    let node = local::take_bytes(core, class).unwrap_or_else(|| make_bytes(core, class));
    Ok(BytesGuard::holding(node))
}

#[cold]
fn lend_bytes_oversized(core: &Core, size_hint: usize) -> Result<BytesGuard, PoolError> {
    if let Err(error) = check_size(core, size_hint) {
        add(&core.refused, 1);
        return Err(error);
    }
    add(&core.oversized, 1);
    let tag = core.tag_of(&core.classes[0]).unpooled();
    let buf = BytesMut::with_capacity(size_hint);
    Ok(BytesGuard::holding(BytesNode::holding(buf, size_hint, tag)))
}

/// A retained buffer of the shared tier, or a new one.
#[cold]
#[inline(never)]
fn make_bytes(core: &Core, class: &Class) -> Box<BytesNode> {
    // A few tries: the oldest of the shared ones may still be read somewhere.
    for _ in 0..4 {
        let Some(mut node) = class.retained.take() else {
            break;
        };
        if node.try_reclaim() {
            add(&class.shared_hits, 1);
            return node;
        }
        core.retain(class, node);
    }
    let tag = core.tag_of(class);
    if core.charge(class) {
        BytesNode::of_class(tag)
    } else {
        BytesNode::of_class(tag.unpooled())
    }
}

fn check_size(core: &Core, size_hint: usize) -> Result<(), PoolError> {
    let request_bytes_max = core.config.request_bytes_max;
    if size_hint > request_bytes_max {
        return Err(PoolError::RequestTooLarge {
            requested_bytes: size_hint,
            request_bytes_max,
        });
    }
    Ok(())
}

#[cold]
#[inline(never)]
fn slow_global(class: usize) -> Box<Node> {
    let pool = buffer_pool();
    pool.get_slow(&pool.core.classes[class])
}

impl Drop for BufferPool {
    fn drop(&mut self) {
        self.core.close();
        local::flush(&self.core);
    }
}
