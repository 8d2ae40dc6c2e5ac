//! The hot path: lending and returning a buffer on one thread.
//!
//! What it must cost: one thread-local address, one linked-list pop or push, one count; no lock, no
//! atomic read-modify-write, no allocation, no moved `Vec`. Everything else is in `local.rs`.
//!
//! Each thread has a slot per class, which holds a magazine of idle boxed buffers. The thread-local
//! has no destructor (`ManuallyDrop` inside), so access compiles to a plain segment-relative address, and stays
//! possible while the thread ends. The destructor belongs to `local::Owner`, which the slow path arms before
//! anything can lie in a slot: an unarmed slot is empty (so `take` fails) and has no room (so `put` fails).

use crate::block::{Block, Room, UNARMED};
use crate::bytes_box::BytesBox;
use crate::class::{SLOTS, Tag};
use crate::magazine::{BufferBox, Magazine};
use std::cell::Cell;
use std::mem::{self, ManuallyDrop};

/// The idle buffers of one class of one pool on one thread.
pub(crate) struct Slot {
    tag: Cell<Tag>,
    head: Cell<ManuallyDrop<Option<Box<BufferBox>>>>,
    /// The buffer frozen last, whose frozen parts may still be read.
    frozen: Cell<ManuallyDrop<Option<Box<BytesBox>>>>,
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
            head: Cell::new(ManuallyDrop::new(None)),
            frozen: Cell::new(ManuallyDrop::new(None)),
        }
    }

    #[inline]
    fn take_head(&self) -> Option<Box<BufferBox>> {
        ManuallyDrop::into_inner(self.head.replace(ManuallyDrop::new(None)))
    }

    /// Sets the head, which the caller has just taken: nothing is lost.
    #[inline]
    fn set_head(&self, head: Option<Box<BufferBox>>) {
        self.head.set(ManuallyDrop::new(head));
    }

    #[inline]
    fn pop(&self, room: &Room) -> Option<Box<BufferBox>> {
        let mut boxed = self.take_head()?;
        self.set_head(boxed.next.take());
        room.set(room.get().wrapping_add(1));
        Some(boxed)
    }

    /// Links a buffer box in; the caller has seen that there is room.
    #[inline]
    pub(crate) fn push(&self, room: &Room, mut boxed: Box<BufferBox>) {
        room.set(room.get().wrapping_sub(1));
        // A box outside a magazine has no next one, so what is replaced is `None`: forgetting it
        // spares the check.
        mem::forget(mem::replace(&mut boxed.next, self.take_head()));
        self.set_head(Some(boxed));
    }

    /// The buffer frozen last, free again or not.
    #[inline]
    pub(crate) fn take_frozen(&self) -> Option<Box<BytesBox>> {
        ManuallyDrop::into_inner(self.frozen.replace(ManuallyDrop::new(None)))
    }

    /// That buffer if it is free again; else what is there, for the slow path.
    #[inline]
    fn lend_frozen(&self) -> Result<Box<BytesBox>, Option<Box<BytesBox>>> {
        let Some(mut boxed) = self.take_frozen() else {
            return Err(None);
        };
        if boxed.try_reclaim() {
            Ok(boxed)
        } else {
            Err(Some(boxed))
        }
    }

    /// Makes the slot take buffers of `tag`. It must be empty, and its room is set by the caller.
    pub(crate) fn arm(&self, tag: Tag) {
        self.tag.set(tag);
    }

    /// Empties the slot of a magazine that was `room_max` long at most, and keeps it armed.
    pub(crate) fn take_magazine(&self, room: &Room, room_max: usize) -> Option<Magazine> {
        let len = room_max.saturating_sub(usize::try_from(room.get()).unwrap_or(0));
        room.set(room_max as u64);
        self.take_head().map(|head| Magazine { head, len })
    }

    /// Fills an empty slot.
    pub(crate) fn set_magazine(&self, room: &Room, magazine: Option<Magazine>) {
        if let Some(Magazine { head, len }) = magazine {
            room.set(room.get().saturating_sub(len as u64));
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
pub(crate) fn take_global(class: usize) -> Option<Box<BufferBox>> {
    with(|hot| {
        let index = class & 15;
        let block = hot.block.get();
        let boxed = hot.slots[index].pop(block.room(index))?;
        block.count_guard(index);
        Some(boxed)
    })
    .flatten()
}

/// An idle buffer with this tag (without flags).
#[inline]
pub(crate) fn take(tag: Tag) -> Option<Box<BufferBox>> {
    with(|hot| {
        let slot = &hot.slots[tag.index()];
        if slot.tag.get() != tag {
            return None;
        }
        let block = hot.block.get();
        let boxed = slot.pop(block.room(tag.index()))?;
        block.count_guard(tag.index());
        Some(boxed)
    })
    .flatten()
}

/// Keeps a returned buffer, or gives it back for the slow path: other pool or class in the slot,
/// flagged, wrong capacity, or no room.
#[inline]
pub(crate) fn put(mut boxed: Box<BufferBox>) -> Option<Box<BufferBox>> {
    let rest = HOT.try_with(|hot| {
        let slot = &hot.slots[boxed.tag.index()];
        let room = hot.block.get().room(boxed.tag.index());
        if slot.tag.get() == boxed.tag && boxed.fits() && room.get() > 0 {
            boxed.vec.clear();
            slot.push(room, boxed);
            None
        } else {
            Some(boxed)
        }
    });
    // A thread-local without a destructor never refuses access.
    rest.unwrap_or_default()
}

/// The buffer frozen last in this thread in a class of the global pool, if it is free again; else what is there.
#[inline]
pub(crate) fn take_bytes_global(class: usize) -> Result<Box<BytesBox>, Option<Box<BytesBox>>> {
    with(|hot| {
        let index = class & 15;
        let boxed = hot.slots[index].lend_frozen()?;
        hot.block.get().count_bytes(index);
        Ok(boxed)
    })
    .unwrap_or(Err(None))
}

/// The buffer frozen last in this thread for a tag (without flags), if it is free again; else what is there.
#[inline]
pub(crate) fn take_bytes(tag: Tag) -> Result<Box<BytesBox>, Option<Box<BytesBox>>> {
    with(|hot| {
        let slot = &hot.slots[tag.index()];
        if slot.tag.get() != tag {
            return Err(None);
        }
        let boxed = slot.lend_frozen()?;
        hot.block.get().count_bytes(tag.index());
        Ok(boxed)
    })
    .unwrap_or(Err(None))
}

/// Keeps a buffer that was frozen or not used, and gives back the one before it, or itself if the slot is
/// another's.
#[inline]
pub(crate) fn put_frozen(boxed: Box<BytesBox>) -> Option<Box<BytesBox>> {
    let rest = HOT.try_with(|hot| {
        let slot = &hot.slots[boxed.tag.index()];
        if slot.tag.get() != boxed.tag {
            return Some(boxed);
        }
        ManuallyDrop::into_inner(slot.frozen.replace(ManuallyDrop::new(Some(boxed))))
    });
    rest.unwrap_or_default()
}
