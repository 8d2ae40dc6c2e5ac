//! How a request is served: the thread's slot, then its other tiers, then the shared tier, then a new buffer.
//!
//! Speaks of boxes only. The guards put their types around them.

use crate::bytes_box::BytesBox;
use crate::class::{CLASS_BYTES_MAX, Tag, class_of};
use crate::core::{Class, Core, add};
use crate::error::PoolError;
use crate::hot;
use crate::local;
use crate::magazine::BufferBox;
use crate::stats::PoolStats;
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

/// Serves a request for a `Vec`, whatever the bounds say: what they refuse gets a buffer of capacity 0.
#[inline]
pub(crate) fn buffer(core: &Arc<Core>, size_hint: usize) -> Box<BufferBox> {
    if size_hint > core.class_request_max {
        return oversized_or_empty(core, size_hint);
    }
    let class = &core.classes[class_of(size_hint)];
    hot::take(class.tag).unwrap_or_else(|| buffer_slow(core, class))
}

/// [`buffer`] of the global pool, which is not looked at if this thread has a buffer.
#[inline]
pub(crate) fn buffer_global(size_hint: usize) -> Box<BufferBox> {
    if size_hint > CLASS_BYTES_MAX {
        return oversized_or_empty(Core::global(), size_hint);
    }
    let class = class_of(size_hint);
    hot::take_global(class).unwrap_or_else(|| buffer_slow_global(class))
}

/// Serves a request for a `Vec`, or says which bound refuses it.
#[inline]
pub(crate) fn try_buffer(core: &Arc<Core>, size_hint: usize) -> Result<Box<BufferBox>, PoolError> {
    if size_hint > core.class_request_max {
        return try_oversized(core, size_hint);
    }
    let class = &core.classes[class_of(size_hint)];
    match hot::take(class.tag) {
        Some(boxed) => Ok(boxed),
        None => try_buffer_slow(core, class, size_hint),
    }
}

#[cold]
#[inline(never)]
fn buffer_slow(core: &Arc<Core>, class: &Class) -> Box<BufferBox> {
    local::refill(core, class)
        .or_else(|| create(core, class))
        .unwrap_or_else(|| unpooled(core, Vec::new()))
}

#[cold]
#[inline(never)]
fn buffer_slow_global(class: usize) -> Box<BufferBox> {
    let core = Core::global();
    buffer_slow(core, &core.classes[class])
}

#[cold]
#[inline(never)]
fn try_buffer_slow(
    core: &Arc<Core>,
    class: &Class,
    size_hint: usize,
) -> Result<Box<BufferBox>, PoolError> {
    local::refill(core, class)
        .or_else(|| create(core, class))
        .ok_or_else(|| budget_used_up(core, size_hint))
}

#[cold]
fn oversized_or_empty(core: &Core, size_hint: usize) -> Box<BufferBox> {
    try_oversized(core, size_hint).unwrap_or_else(|_| unpooled(core, Vec::new()))
}

#[cold]
fn try_oversized(core: &Core, size_hint: usize) -> Result<Box<BufferBox>, PoolError> {
    oversized_vec(core, size_hint).map(|vec| unpooled(core, vec))
}

/// Memory for a request that no class serves, which is counted as oversized or refused.
fn oversized_vec(core: &Core, size_hint: usize) -> Result<Vec<u8>, PoolError> {
    let vec = check_size(core, size_hint).and_then(|()| {
        let mut vec = Vec::new();
        vec.try_reserve_exact(size_hint)
            .map_err(|_| PoolError::OutOfMemory {
                requested_bytes: size_hint,
            })?;
        Ok(vec)
    });
    let count = if vec.is_ok() {
        &core.oversized
    } else {
        &core.refused
    };
    add(count, 1);
    vec
}

/// A new buffer: pooled if the budget allows, else freed on return, unless the pool refuses those.
fn create(core: &Arc<Core>, class: &Class) -> Option<Box<BufferBox>> {
    admit(core, class).map(BufferBox::of_class)
}

/// The tag of a buffer that may be made now: pooled if the budget allows, else unpooled, else none.
fn admit(core: &Core, class: &Class) -> Option<Tag> {
    let tag = core.tag_of(class);
    if core.charge(class) {
        return Some(tag);
    }
    if !core.config.refuse_beyond_budget {
        add(&class.unpooled, 1);
        return Some(tag.unpooled());
    }
    // What this thread keeps idle makes room before the request is refused.
    local::flush(core);
    if core.charge(class) {
        return Some(tag);
    }
    add(&core.refused, 1);
    None
}

fn unpooled(core: &Core, vec: Vec<u8>) -> Box<BufferBox> {
    BufferBox::holding(vec, core.tag_of(&core.classes[0]).unpooled())
}

/// Serves a request for a buffer that freezes without a copy.
#[inline]
pub(crate) fn bytes(core: &Arc<Core>, size_hint: usize) -> Result<Box<BytesBox>, PoolError> {
    if size_hint > core.class_request_max {
        return bytes_oversized(core, size_hint);
    }
    let class = &core.classes[class_of(size_hint)];
    match hot::take_bytes(class.tag) {
        Ok(boxed) => Ok(boxed),
        Err(busy) => bytes_slow(core, class, busy).ok_or_else(|| budget_used_up(core, size_hint)),
    }
}

/// [`bytes`] of the global pool, which is not looked at if this thread has a buffer.
#[inline]
pub(crate) fn bytes_global(size_hint: usize) -> Result<Box<BytesBox>, PoolError> {
    if size_hint > CLASS_BYTES_MAX {
        return bytes_oversized(Core::global(), size_hint);
    }
    let class = class_of(size_hint);
    match hot::take_bytes_global(class) {
        Ok(boxed) => Ok(boxed),
        Err(busy) => bytes_slow_global(class, busy, size_hint),
    }
}

/// A buffer of the smallest class of a buffer's pool, if that still lives and its bounds allow one. The tag has no flags.
#[inline]
pub(crate) fn bytes_smallest(tag: Tag) -> Option<Box<BytesBox>> {
    match hot::take_bytes(tag.smallest()) {
        Ok(boxed) => Some(boxed),
        Err(busy) => bytes_smallest_slow(tag, busy),
    }
}

#[cold]
#[inline(never)]
fn bytes_smallest_slow(tag: Tag, busy: Option<Box<BytesBox>>) -> Option<Box<BytesBox>> {
    let core = local::core_of(tag)?;
    bytes_slow(&core, &core.classes[0], busy)
}

#[cold]
#[inline(never)]
fn bytes_slow_global(
    class: usize,
    busy: Option<Box<BytesBox>>,
    size_hint: usize,
) -> Result<Box<BytesBox>, PoolError> {
    let core = Core::global();
    bytes_slow(core, &core.classes[class], busy).ok_or_else(|| budget_used_up(core, size_hint))
}

#[cold]
#[inline(never)]
fn bytes_slow(
    core: &Arc<Core>,
    class: &Class,
    busy: Option<Box<BytesBox>>,
) -> Option<Box<BytesBox>> {
    local::take_from_ring(core, class, busy).or_else(|| make_bytes(core, class))
}

#[cold]
fn bytes_oversized(core: &Core, size_hint: usize) -> Result<Box<BytesBox>, PoolError> {
    let vec = oversized_vec(core, size_hint)?;
    let tag = core.tag_of(&core.classes[0]).unpooled();
    // Takes the memory over: `BytesMut` itself can only reserve or end the process.
    let buf = BytesMut::from(Bytes::from(vec));
    Ok(BytesBox::holding(buf, size_hint, tag))
}

/// A retained buffer of the shared tier, or a new one; `None` if the bounds allow none.
fn make_bytes(core: &Core, class: &Class) -> Option<Box<BytesBox>> {
    // A few tries: the oldest of the shared ones may still be read somewhere.
    for _ in 0..4 {
        let Some(mut boxed) = class.retained.take() else {
            break;
        };
        if boxed.try_reclaim() {
            add(&class.shared_hits, 1);
            return Some(boxed);
        }
        core.retain(class, boxed);
    }
    admit(core, class).map(BytesBox::of_class)
}

/// Why a pool that refuses beyond its budget has no buffer.
#[cold]
fn budget_used_up(core: &Core, requested_bytes: usize) -> PoolError {
    let stats = PoolStats::of(core);
    PoolError::BudgetUsedUp {
        requested_bytes,
        budget_bytes: stats.budget_bytes,
        lent_bytes: stats.lent_bytes(),
        frozen_bytes: stats.frozen_bytes(),
        idle_bytes: stats.idle_bytes(),
    }
}

fn check_size(core: &Core, size_hint: usize) -> Result<(), PoolError> {
    let request_bytes_max = core.config.request_bytes_cap();
    if size_hint > request_bytes_max {
        return Err(PoolError::RequestTooLarge {
            requested_bytes: size_hint,
            request_bytes_max,
        });
    }
    Ok(())
}
