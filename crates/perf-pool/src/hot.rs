//! The hot path: lending and returning a buffer on one thread.
//!
//! What it must cost: one thread-local address, one linked-list pop or push, one count; no lock, no
//! atomic read-modify-write, no allocation, no moved `Vec`. Everything else is in `local.rs`.
//!
//! Each thread has a slot per class, which holds a chain of idle boxed buffers. The thread-local
//! has no destructor (`ManuallyDrop` inside), so access compiles to a plain segment-relative address, and stays
//! possible while the thread ends. The destructor belongs to `local::Owner`, which the slow path arms before
//! anything can lie in a slot: an unarmed slot is empty (so `take` fails) and has no room (so `put` fails).

use crate::block::{Block, UNARMED};
use crate::bytes_node::BytesNode;
use crate::class::{SLOTS, Tag};
use crate::node::{Chain, Node};
use std::cell::Cell;
use std::mem::{self, ManuallyDrop};

/// The idle buffers of one class of one pool on one thread.
pub(crate) struct Slot {
    tag: Cell<Tag>,
    /// How many more buffers fit.
    room: Cell<usize>,
    head: Cell<ManuallyDrop<Option<Box<Node>>>>,
    /// The buffer frozen last, whose frozen parts may still be read.
    frozen: Cell<ManuallyDrop<Option<Box<BytesNode>>>>,
}

/// All slots of one thread.
pub(crate) struct Hot {
    slots: [Slot; SLOTS],
    pub(crate) block: Cell<&'static Block>,
}

thread_local! {
    static HOT: Hot = const {
        Hot {
            slots: [const { Slot::unarmed() }; SLOTS],
            block: Cell::new(&UNARMED),
        }
    };
}

impl Slot {
    const fn unarmed() -> Self {
        Self {
            tag: Cell::new(Tag::NONE),
            room: Cell::new(0),
            head: Cell::new(ManuallyDrop::new(None)),
            frozen: Cell::new(ManuallyDrop::new(None)),
        }
    }

    #[inline]
    fn take_head(&self) -> Option<Box<Node>> {
        ManuallyDrop::into_inner(self.head.replace(ManuallyDrop::new(None)))
    }

    /// Sets the head, which the caller has just taken: nothing is lost.
    #[inline]
    fn set_head(&self, head: Option<Box<Node>>) {
        self.head.set(ManuallyDrop::new(head));
    }

    #[inline]
    fn pop(&self) -> Option<Box<Node>> {
        let mut node = self.take_head()?;
        self.set_head(node.next.take());
        self.room.set(self.room.get().wrapping_add(1));
        Some(node)
    }

    /// Links a node in; the caller has seen that there is room.
    #[inline]
    pub(crate) fn push(&self, mut node: Box<Node>) {
        self.room.set(self.room.get().wrapping_sub(1));
        // A node outside a chain has no next one, so what is replaced is `None`: forgetting it
        // spares the check.
        mem::forget(mem::replace(&mut node.next, self.take_head()));
        self.set_head(Some(node));
    }

    /// The buffer frozen last, free again or not.
    #[inline]
    pub(crate) fn take_frozen(&self) -> Option<Box<BytesNode>> {
        ManuallyDrop::into_inner(self.frozen.replace(ManuallyDrop::new(None)))
    }

    pub(crate) fn has_room(&self) -> bool {
        self.room.get() > 0
    }

    /// Makes the slot take buffers of `tag`, `room` at most. It must be empty.
    pub(crate) fn arm(&self, tag: Tag, room: usize) {
        self.tag.set(tag);
        self.room.set(room);
    }

    /// Empties the slot of a chain that was `room_max` long at most, and keeps it armed.
    pub(crate) fn take_chain(&self, room_max: usize) -> Option<Chain> {
        let len = room_max - self.room.replace(room_max);
        self.take_head().map(|head| Chain { head, len })
    }

    /// Fills an empty slot.
    pub(crate) fn set_chain(&self, chain: Option<Chain>) {
        if let Some(Chain { head, len }) = chain {
            self.room.set(self.room.get().saturating_sub(len));
            self.set_head(Some(head));
        }
    }
}

impl Hot {
    pub(crate) fn slot(&self, index: usize) -> &Slot {
        &self.slots[index % SLOTS]
    }
}

/// Runs `f` on this thread's slots. They exist as long as the thread does.
#[inline]
pub(crate) fn with<R>(f: impl FnOnce(&Hot) -> R) -> Option<R> {
    HOT.try_with(f).ok()
}

/// An idle buffer of the global pool, whose slots are its own: no tag to compare.
#[inline]
pub(crate) fn take_global(class: usize) -> Option<Box<Node>> {
    with(|hot| {
        let index = class & 15;
        let node = hot.slots[index].pop()?;
        hot.block.get().count_guard(index);
        Some(node)
    })
    .flatten()
}

/// An idle buffer with this tag (without flags).
#[inline]
pub(crate) fn take(tag: Tag) -> Option<Box<Node>> {
    with(|hot| {
        let slot = &hot.slots[tag.index()];
        if slot.tag.get() != tag {
            return None;
        }
        let node = slot.pop()?;
        hot.block.get().count_guard(tag.index());
        Some(node)
    })
    .flatten()
}

/// Keeps a returned buffer, or gives it back for the slow path: other pool or class in the slot,
/// flagged, wrong capacity, or no room.
#[inline]
pub(crate) fn put(mut node: Box<Node>) -> Option<Box<Node>> {
    let rest = HOT.try_with(|hot| {
        let slot = &hot.slots[node.tag.index()];
        if slot.tag.get() == node.tag && node.fits() && slot.has_room() {
            node.vec.clear();
            slot.push(node);
            None
        } else {
            Some(node)
        }
    });
    // A thread-local without a destructor never refuses access.
    rest.unwrap_or_default()
}

/// The buffer frozen last in this thread with this tag (without flags). It may not be free yet.
#[inline]
pub(crate) fn take_frozen(tag: Tag) -> Option<Box<BytesNode>> {
    with(|hot| {
        let slot = &hot.slots[tag.index()];
        if slot.tag.get() == tag {
            slot.take_frozen()
        } else {
            None
        }
    })
    .flatten()
}

/// Keeps a buffer that was frozen or not used, and gives back the one before it, or itself if the slot is
/// another's.
#[inline]
pub(crate) fn put_frozen(node: Box<BytesNode>) -> Option<Box<BytesNode>> {
    let rest = HOT.try_with(|hot| {
        let slot = &hot.slots[node.tag.index()];
        if slot.tag.get() != node.tag {
            return Some(node);
        }
        ManuallyDrop::into_inner(slot.frozen.replace(ManuallyDrop::new(Some(node))))
    });
    rest.unwrap_or_default()
}

/// Counts a retained buffer that was free again.
#[inline]
pub(crate) fn count_bytes(tag: Tag) {
    let _ = HOT.try_with(|hot| hot.block.get().count_bytes(tag.index()));
}
