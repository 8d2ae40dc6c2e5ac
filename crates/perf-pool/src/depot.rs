//! The shared tier: a queue that can be closed without anything staying behind in it.

use crate::primitive::{AtomicBool, GrowingQueue, Ordering, Queue, fence, mutant};

/// Holds what threads hand to each other: magazines of buffers, or retained frozen buffers.
///
/// *Closing.* A pool may be dropped while another thread returns a buffer to it. `put` pushes, then
/// looks at `closed`; `close` sets it, then drains. With a `SeqCst` fence between the two steps on both
/// sides, at least one of them sees the other: either the drain finds the item or `put` finds the flag and
/// takes an item out again. So once every `put` and `close` has returned, a closed depot is empty.
#[derive(Debug)]
pub struct Depot<T> {
    items: Queue<T>,
    /// Takes what `items` has no place for; `None` in a bounded depot.
    overflow: Option<GrowingQueue<T>>,
    closed: AtomicBool,
}

impl<T> Depot<T> {
    /// A depot for at most `capacity` items (at least one).
    pub fn new(capacity: usize) -> Self {
        Self {
            items: Queue::new(capacity.max(1)),
            overflow: None,
            closed: AtomicBool::new(false),
        }
    }

    /// A depot that refuses no item while it is open. Beyond `capacity` items it grows, and shrinks again: for items
    /// that something else bounds.
    pub fn growing(capacity: usize) -> Self {
        Self {
            overflow: Some(GrowingQueue::new()),
            ..Self::new(capacity)
        }
    }

    /// Parks an item.
    ///
    /// # Errors
    /// An item the caller must free: its own if the depot is full or closed, or another one that had
    /// to leave because the depot closed meanwhile.
    pub fn put(&self, item: T) -> Result<(), T> {
        if self.is_closed() {
            return Err(item);
        }
        match &self.overflow {
            None => self.items.push(item)?,
            // Behind the items there: a thread that takes items and puts them back looks at each of them.
            Some(overflow) if !overflow.is_empty() => overflow.push(item),
            Some(overflow) => {
                if let Err(item) = self.items.push(item) {
                    overflow.push(item);
                }
            }
        }
        // Pairs with the fence in `close`.
        fence(Ordering::SeqCst);
        if !mutant::is("depot_no_recheck") && self.is_closed() {
            return self.take().map_or(Ok(()), Err);
        }
        Ok(())
    }

    /// The oldest parked item.
    pub fn take(&self) -> Option<T> {
        let overflow = || self.overflow.as_ref().and_then(GrowingQueue::pop);
        self.items.pop().or_else(overflow)
    }

    /// How many items are parked.
    pub fn len(&self) -> usize {
        self.items.len() + self.overflow.as_ref().map_or(0, GrowingQueue::len)
    }

    /// Whether [`Depot::close`] was called. `Relaxed`: the fences order it where order matters.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Refuses all further items and hands over those that are parked.
    pub fn close(&self, mut free: impl FnMut(T)) {
        self.closed.store(true, Ordering::Relaxed);
        // Pairs with the fence in `put`.
        fence(Ordering::SeqCst);
        while let Some(item) = self.take() {
            free(item);
        }
    }
}
