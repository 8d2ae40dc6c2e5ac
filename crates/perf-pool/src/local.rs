//! The slow path on one thread: filling and emptying the hot slots, and the thread's end.
//!
//! `OWNER` owns what the hot slots hold and has the destructor that they lack. No user code runs while it
//! is borrowed: buffers are `Vec<u8>`, whose drop calls the allocator only. When it is gone or borrowed, every
//! function here says so and its caller uses the shared tier.

use crate::block::Block;
use crate::bytes_box::BytesBox;
use crate::class::{CLASSES, POOL_SLOTS, SLOTS, Tag};
use crate::core::{Class, Core, add};
use crate::hot::{self, Hot};
use crate::magazine::{BufferBox, Magazine};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

/// Slow operations of another pool that a slot's pool survives. Two pools that share a slot then change
/// places at most once in as many operations, instead of at each.
const EVICT_AFTER: u32 = 256;

struct Owner {
    pools: [Option<Arc<Core>>; POOL_SLOTS],
    pressure: [u32; POOL_SLOTS],
    spares: [Option<Magazine>; SLOTS],
    rings: Vec<VecDeque<Box<BytesBox>>>,
    block: Option<&'static Block>,
}

thread_local! {
    static OWNER: RefCell<Owner> = const {
        RefCell::new(Owner {
            pools: [const { None }; POOL_SLOTS],
            pressure: [0; POOL_SLOTS],
            spares: [const { None }; SLOTS],
            rings: Vec::new(),
            block: None,
        })
    };
}

fn with_owner<R>(f: impl FnOnce(&mut Owner, &Hot) -> R) -> Option<R> {
    OWNER
        .try_with(|owner| {
            let mut owner = owner.try_borrow_mut().ok()?;
            hot::with(|hot| f(&mut owner, hot))
        })
        .ok()
        .flatten()
}

/// A buffer from this thread's spare magazine or from the shared tier; `None` if one must be created.
#[cold]
pub(crate) fn refill(core: &Arc<Core>, class: &Class) -> Option<Box<BufferBox>> {
    with_owner(|owner, hot| {
        if class.magazine_len == 0 || !owner.arm(hot, core) {
            return None;
        }
        Some(owner.refill(hot, core, class))
    })
    .flatten()
    .unwrap_or_else(|| core.take_single(class))
}

/// Keeps a buffer that the hot path could not keep: on this thread if there is a tier, else shared.
pub(crate) fn keep(core: &Arc<Core>, class: &Class, boxed: Box<BufferBox>) {
    let mut boxed = Some(boxed);
    with_owner(|owner, hot| {
        if class.magazine_len > 0
            && owner.arm(hot, core)
            && let Some(boxed) = boxed.take()
        {
            owner.keep(hot, core, class, boxed);
        }
    });
    if let Some(boxed) = boxed {
        core.park(class, Magazine::single(boxed));
    }
}

/// A retained frozen buffer of this thread that is free again, after the one in the slot was not: `busy`.
#[cold]
pub(crate) fn take_from_ring(
    core: &Arc<Core>,
    class: &Class,
    busy: Option<Box<BytesBox>>,
) -> Option<Box<BytesBox>> {
    if let Some(boxed) = busy {
        keep_in_ring(boxed, true);
    }
    with_owner(|owner, hot| {
        if !owner.holds(core) && !owner.arm(hot, core) {
            return None;
        }
        let index = class.tag.index();
        let ring = owner.rings.get_mut(index)?;
        // The oldest is the likeliest to be free.
        if !ring.front_mut()?.try_reclaim() {
            return None;
        }
        let block = hot.block.get();
        block.count_bytes(index);
        let boxed = ring.pop_front();
        block.set_ring(index, ring.len());
        boxed
    })
    .flatten()
}

/// Keeps a frozen buffer's handle (`busy`) or an unused buffer on this thread, else shared.
#[inline]
pub(crate) fn keep_bytes(boxed: Box<BytesBox>, busy: bool) {
    if let Some(boxed) = hot::put_frozen(boxed) {
        keep_in_ring(boxed, busy);
    }
}

#[cold]
fn keep_in_ring(boxed: Box<BytesBox>, busy: bool) {
    let tag = boxed.tag;
    let mut boxed = Some(boxed);
    with_owner(|owner, _| {
        if let Some(core) = &owner.pools[tag.pool_slot()]
            && core.id() == tag.pool_id()
            && let Some(ring) = owner.rings.get_mut(tag.index())
            && let Some(boxed) = boxed.take()
        {
            let class = &core.classes[tag.class()];
            let oldest = push_ring(ring, class, boxed, busy);
            if let Some(block) = owner.block {
                block.set_ring(tag.index(), ring.len());
            }
            if let Some(oldest) = oldest {
                core.retain(class, oldest);
            }
        }
    });
    if let Some(boxed) = boxed {
        keep_bytes_elsewhere(boxed, busy);
    }
}

/// [`keep_bytes`] where this thread's tier does not hold the buffer's pool yet, or cannot.
#[cold]
fn keep_bytes_elsewhere(boxed: Box<BytesBox>, busy: bool) {
    // The pool is gone: its budget with it.
    let Some(core) = core_of(boxed.tag) else {
        return;
    };
    let class = &core.classes[boxed.tag.class()];
    let mut boxed = Some(boxed);
    with_owner(|owner, hot| {
        if owner.arm(hot, &core)
            && let Some(ring) = owner.rings.get_mut(class.tag.index())
            && let Some(new) = boxed.take()
        {
            boxed = push_ring(ring, class, new, busy);
            hot.block.get().set_ring(class.tag.index(), ring.len());
        }
    });
    if let Some(boxed) = boxed {
        core.retain(class, boxed);
    }
}

/// Adds a buffer to a ring and says which one had to leave.
fn push_ring(
    ring: &mut VecDeque<Box<BytesBox>>,
    class: &Class,
    boxed: Box<BytesBox>,
    busy: bool,
) -> Option<Box<BytesBox>> {
    if class.ring_len == 0 {
        return Some(boxed);
    }
    let oldest = if ring.len() < class.ring_len {
        None
    } else {
        ring.pop_front()
    };
    if busy {
        ring.push_back(boxed);
    } else {
        ring.push_front(boxed);
    }
    oldest
}

/// The pool of a tag, if it lives: from this thread's tier, or from the register of pools.
pub(crate) fn core_of(tag: Tag) -> Option<Arc<Core>> {
    with_owner(|owner, _| {
        owner.pools[tag.pool_slot()]
            .as_ref()
            .filter(|core| core.id() == tag.pool_id())
            .cloned()
    })
    .flatten()
    .or_else(|| Core::find(tag.pool_id()))
}

/// Hands what this thread holds of a pool to the shared tier.
pub(crate) fn flush(core: &Core) {
    with_owner(|owner, hot| {
        if owner.holds(core) {
            owner.evict(hot, core.pool_slot());
        }
    });
}

impl Owner {
    fn holds(&self, core: &Core) -> bool {
        matches!(&self.pools[core.pool_slot()], Some(held) if held.id() == core.id())
    }

    /// Makes this thread's slots hold buffers of `core`. Says no if another pool uses them or the pool is closed.
    fn arm(&mut self, hot: &Hot, core: &Arc<Core>) -> bool {
        for pool_slot in 0..POOL_SLOTS {
            if matches!(&self.pools[pool_slot], Some(held) if held.is_closed()) {
                self.evict(hot, pool_slot);
            }
        }
        let pool_slot = core.pool_slot();
        match &self.pools[pool_slot] {
            _ if core.is_closed() => return false,
            Some(held) if held.id() == core.id() => return true,
            Some(_) if self.pressure[pool_slot] < EVICT_AFTER => {
                self.pressure[pool_slot] += 1;
                return false;
            }
            Some(_) => self.evict(hot, pool_slot),
            None => {}
        }
        let block = *self.block.get_or_insert_with(Block::lease);
        hot.block.set(block);
        self.rings.resize_with(SLOTS, VecDeque::new);
        for class in &core.classes {
            let index = class.tag.index();
            block.room(index).set(class.magazine_len as u64);
            if class.magazine_len > 0 {
                hot.slot(index).arm(class.tag);
            }
        }
        block.own(pool_slot, core);
        self.pressure[pool_slot] = 0;
        self.pools[pool_slot] = Some(Arc::clone(core));
        true
    }

    fn refill(&mut self, hot: &Hot, core: &Core, class: &Class) -> Option<Box<BufferBox>> {
        let index = class.tag.index();
        let slot = hot.slot(index);
        // Not empty if another pool's tag was in the slot when the hot path looked.
        let block = hot.block.get();
        let room = block.room(index);
        let (magazine, is_shared) =
            if let Some(magazine) = slot.take_magazine(room, class.magazine_len) {
                (magazine, false)
            } else if let Some(magazine) = self.spares[index].take() {
                block.set_spare(index, 0);
                (magazine, false)
            } else {
                (class.unpark()?, true)
            };
        let (boxed, rest) = magazine.split_first();
        slot.set_magazine(room, rest);
        if is_shared {
            add(&class.shared_hits, 1);
        } else {
            block.count_guard(index);
        }
        debug_assert_eq!(boxed.tag, core.tag_of(class));
        Some(boxed)
    }

    fn keep(&mut self, hot: &Hot, core: &Core, class: &Class, boxed: Box<BufferBox>) {
        let index = class.tag.index();
        let slot = hot.slot(index);
        let block = hot.block.get();
        let room = block.room(index);
        if room.get() == 0
            && let Some(full) = slot.take_magazine(room, class.magazine_len)
        {
            let out = if class.spare {
                block.set_spare(index, full.len);
                self.spares[index].replace(full)
            } else {
                Some(full)
            };
            if let Some(magazine) = out {
                core.park(class, magazine);
            }
        }
        slot.push(room, boxed);
    }

    /// Empties the slots of one pool into its shared tier and disarms them.
    fn evict(&mut self, hot: &Hot, pool_slot: usize) {
        let Some(core) = self.pools[pool_slot].take() else {
            return;
        };
        for class in &core.classes {
            let index = class.tag.index();
            let slot = hot.slot(index);
            let block = hot.block.get();
            let held = slot.take_magazine(block.room(index), class.magazine_len);
            slot.arm(Tag::NONE);
            block.set_spare(index, 0);
            block.set_ring(index, 0);
            for magazine in held.into_iter().chain(self.spares[index].take()) {
                core.park(class, magazine);
            }
            if let Some(boxed) = slot.take_frozen() {
                core.retain(class, boxed);
            }
            if let Some(ring) = self.rings.get_mut(index) {
                for boxed in ring.drain(..) {
                    core.retain(class, boxed);
                }
            }
        }
        if let Some(block) = self.block {
            block.disown(pool_slot, &core);
        }
    }
}

impl Drop for Owner {
    /// The thread ends: everything goes to the shared tiers, and the slots stay disarmed, so that later
    /// returns (from destructors of other thread-locals) take the slow path and go there too.
    fn drop(&mut self) {
        hot::with(|hot| {
            for pool_slot in 0..POOL_SLOTS {
                self.evict(hot, pool_slot);
            }
            hot.block.set(&crate::block::UNARMED);
        });
        if let Some(block) = self.block.take() {
            block.give_back();
        }
    }
}

const _: () = assert!(CLASSES <= 16);
