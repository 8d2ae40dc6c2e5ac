//! The slow path on one thread: filling and emptying the hot slots, and the thread's end.
//!
//! `OWNER` owns what the hot slots hold and has the destructor that they lack. No user code runs while it
//! is borrowed: buffers are `Vec<u8>`, whose drop calls the allocator only. When it is gone or borrowed, every
//! function here says so and its caller uses the shared tier.

use crate::block::Block;
use crate::bytes_node::BytesNode;
use crate::class::{CLASSES, POOL_SLOTS, SLOTS, Tag};
use crate::core::{Class, Core, add};
use crate::hot::{self, Hot};
use crate::node::{Chain, Node};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

/// Slow operations of another pool that a slot's pool survives. Two pools that share a slot then change
/// places at most once in as many operations, instead of at each.
const EVICT_AFTER: u32 = 256;

struct Owner {
    pools: [Option<Arc<Core>>; POOL_SLOTS],
    pressure: [u32; POOL_SLOTS],
    spares: [Option<Chain>; SLOTS],
    rings: Vec<VecDeque<Box<BytesNode>>>,
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

/// A buffer from this thread's spare chain or from the shared tier; `None` if one must be created.
#[cold]
pub(crate) fn refill(core: &Arc<Core>, class: &Class) -> Option<Box<Node>> {
    with_owner(|owner, hot| {
        if class.chain_len == 0 || !owner.arm(hot, core) {
            return None;
        }
        Some(owner.refill(hot, core, class))
    })
    .flatten()
    .unwrap_or_else(|| core.take_single(class))
}

/// Keeps a buffer that the hot path could not keep: on this thread if there is a tier, else shared.
pub(crate) fn keep(core: &Arc<Core>, class: &Class, node: Box<Node>) {
    let mut node = Some(node);
    with_owner(|owner, hot| {
        if class.chain_len > 0
            && owner.arm(hot, core)
            && let Some(node) = node.take()
        {
            owner.keep(hot, core, class, node);
        }
    });
    if let Some(node) = node {
        core.park(class, Chain::single(node));
    }
}

/// A retained frozen buffer of this thread that is free again.
#[inline]
pub(crate) fn take_bytes(core: &Arc<Core>, class: &Class) -> Option<Box<BytesNode>> {
    if let Some(mut node) = hot::take_frozen(class.tag) {
        if node.try_reclaim() {
            hot::count_bytes(class.tag);
            return Some(node);
        }
        keep_in_ring(node, true);
    }
    take_from_ring(core, class)
}

#[cold]
fn take_from_ring(core: &Arc<Core>, class: &Class) -> Option<Box<BytesNode>> {
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
        hot.block.get().count_bytes(index);
        ring.pop_front()
    })
    .flatten()
}

/// Keeps a frozen buffer's handle (`busy`) or an unused buffer on this thread, else shared.
#[inline]
pub(crate) fn keep_bytes(node: Box<BytesNode>, busy: bool) {
    if let Some(node) = hot::put_frozen(node) {
        keep_in_ring(node, busy);
    }
}

#[cold]
fn keep_in_ring(node: Box<BytesNode>, busy: bool) {
    let tag = node.tag;
    let mut node = Some(node);
    with_owner(|owner, _| {
        if let Some(core) = &owner.pools[tag.pool_slot()]
            && core.id() == tag.pool_id()
            && let Some(ring) = owner.rings.get_mut(tag.index())
            && let Some(node) = node.take()
        {
            let class = &core.classes[tag.class()];
            if let Some(oldest) = push_ring(ring, class, node, busy) {
                core.retain(class, oldest);
            }
        }
    });
    if let Some(node) = node {
        keep_bytes_elsewhere(node, busy);
    }
}

/// The same when this thread's tier does not hold the buffer's pool yet, or cannot.
#[cold]
fn keep_bytes_elsewhere(node: Box<BytesNode>, busy: bool) {
    // The pool is gone: its budget with it.
    let Some(core) = core_of(node.tag) else {
        return;
    };
    let class = &core.classes[node.tag.class()];
    let mut node = Some(node);
    with_owner(|owner, hot| {
        if owner.arm(hot, &core)
            && let Some(ring) = owner.rings.get_mut(class.tag.index())
            && let Some(new) = node.take()
        {
            node = push_ring(ring, class, new, busy);
        }
    });
    if let Some(node) = node {
        core.retain(class, node);
    }
}

/// Adds a buffer to a ring and says which one had to leave.
fn push_ring(
    ring: &mut VecDeque<Box<BytesNode>>,
    class: &Class,
    node: Box<BytesNode>,
    busy: bool,
) -> Option<Box<BytesNode>> {
    if class.ring_len == 0 {
        return Some(node);
    }
    let oldest = if ring.len() < class.ring_len {
        None
    } else {
        ring.pop_front()
    };
    if busy {
        ring.push_back(node);
    } else {
        ring.push_front(node);
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
        block.own(pool_slot, core);
        self.rings.resize_with(SLOTS, VecDeque::new);
        for class in core.classes.iter().filter(|class| class.chain_len > 0) {
            hot.slot(class.tag.index()).arm(class.tag, class.chain_len);
        }
        self.pressure[pool_slot] = 0;
        self.pools[pool_slot] = Some(Arc::clone(core));
        true
    }

    fn refill(&mut self, hot: &Hot, core: &Core, class: &Class) -> Option<Box<Node>> {
        let index = class.tag.index();
        let slot = hot.slot(index);
        // Not empty if another pool's tag was in the slot when the hot path looked.
        let (chain, is_shared) = if let Some(chain) = slot.take_chain(class.chain_len) {
            (chain, false)
        } else if let Some(chain) = self.spares[index].take() {
            (chain, false)
        } else {
            (class.depot.take()?, true)
        };
        let (node, rest) = chain.split_first();
        slot.set_chain(rest);
        if is_shared {
            add(&class.shared_hits, 1);
        } else {
            hot.block.get().count_guard(index);
        }
        debug_assert_eq!(node.tag, core.tag_of(class));
        Some(node)
    }

    fn keep(&mut self, hot: &Hot, core: &Core, class: &Class, node: Box<Node>) {
        let index = class.tag.index();
        let slot = hot.slot(index);
        if !slot.has_room()
            && let Some(full) = slot.take_chain(class.chain_len)
        {
            let out = if class.spare {
                self.spares[index].replace(full)
            } else {
                Some(full)
            };
            if let Some(chain) = out {
                core.park(class, chain);
            }
        }
        slot.push(node);
    }

    /// Empties the slots of one pool into its shared tier and disarms them.
    fn evict(&mut self, hot: &Hot, pool_slot: usize) {
        let Some(core) = self.pools[pool_slot].take() else {
            return;
        };
        for class in &core.classes {
            let index = class.tag.index();
            let slot = hot.slot(index);
            let held = slot.take_chain(class.chain_len);
            slot.arm(Tag::NONE, 0);
            for chain in held.into_iter().chain(self.spares[index].take()) {
                core.park(class, chain);
            }
            if let Some(node) = slot.take_frozen() {
                core.retain(class, node);
            }
            if let Some(ring) = self.rings.get_mut(index) {
                for node in ring.drain(..) {
                    core.retain(class, node);
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
