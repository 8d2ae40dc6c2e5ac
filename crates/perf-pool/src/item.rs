//! A pooled object that knows its pool, so that its handle is one word, owns it, and may go to any thread.

use crate::object_local;
use crate::object_shared::{Charge, Shared};
use std::mem::ManuallyDrop;
use std::sync::Arc;

/// An object and the way home.
///
/// The count of the pool's owners changes when an item is made and when it is freed, never when it is lent. Idle items keep their
/// pool alive in a circle, which the pool's handle breaks when it is dropped: it closes the shared tier and takes all out.
pub(crate) struct Item<T: Send + 'static> {
    pub(crate) value: T,
    /// The pool's id, beside the value: the pool itself lies on a line that others write.
    id: u64,
    /// `None` beyond the bound: such an item is dropped on return.
    home: Option<Arc<Shared<Item<T>>>>,
}

/// A lent item. Dropping it gives the item back as it is, on whatever thread that is.
pub(crate) struct Lent<T: Send + 'static> {
    /// `None` only while it is being taken apart. `ManuallyDrop` because `drop` always takes it out.
    item: ManuallyDrop<Option<Box<Item<T>>>>,
}

impl<T: Send + 'static> Lent<T> {
    /// An idle item of this thread, else a shared one.
    #[inline]
    pub(crate) fn idle(id: u64, shared: &Arc<Shared<Item<T>>>) -> Option<Self> {
        object_local::take_here(id)
            .or_else(|| object_local::take_shared(shared))
            .map(Self::holding)
    }

    /// A new item with the charge that was taken for it: beyond the bound it has no home.
    pub(crate) fn made(
        value: T,
        charge: Charge<'_, Item<T>>,
        shared: &Arc<Shared<Item<T>>>,
    ) -> Self {
        let home = charge.is_pooled().then(|| Arc::clone(shared));
        let item = Box::new(Item {
            value,
            id: shared.id,
            home,
        });
        charge.keep();
        Self::holding(item)
    }

    #[inline]
    fn holding(item: Box<Item<T>>) -> Self {
        Self {
            item: ManuallyDrop::new(Some(item)),
        }
    }

    #[inline]
    pub(crate) fn get(&self) -> &T {
        let item = self.item.as_ref();
        &item
            .expect("a lent item is there until it is given back")
            .value
    }

    #[inline]
    pub(crate) fn get_mut(&mut self) -> &mut T {
        let item = self.item.as_mut();
        &mut item
            .expect("a lent item is there until it is given back")
            .value
    }

    /// Lets the item go: it is freed, instead of given back, when this is dropped.
    #[cfg(feature = "arena")]
    #[cold]
    pub(crate) fn discard(&mut self) {
        if let Some(item) = &mut *self.item
            && let Some(home) = item.home.take()
        {
            home.lose();
        }
    }
}

impl<T: Send + 'static> Drop for Lent<T> {
    #[inline]
    fn drop(&mut self) {
        let Some(item) = self.item.take() else {
            return;
        };
        if item.home.is_none() {
            return;
        }
        if let Some(item) = object_local::keep_here(item.id, item) {
            give_back_slow(item);
        }
    }
}

#[cold]
#[inline(never)]
fn give_back_slow<T: Send + 'static>(item: Box<Item<T>>) {
    let Some(home) = item.home.clone() else {
        return;
    };
    // What found no place is dropped here, outside every borrow.
    if let Some(item) = object_local::keep_shared(&home, item) {
        home.release(1);
        drop(item);
    }
}

/// Takes a pool of items apart: what is shared or this thread's is dropped, and no more is kept.
pub(crate) fn close<T: Send + 'static>(shared: &Shared<Item<T>>) {
    object_local::flush(shared.id);
    drop(shared.close());
}

/// Drops the idle items that are shared or this thread's, and says how many.
pub(crate) fn trim<T: Send + 'static>(shared: &Shared<Item<T>>) -> usize {
    object_local::flush(shared.id);
    let items = shared.take_all();
    shared.release(items.len() as u64);
    items.len()
}
