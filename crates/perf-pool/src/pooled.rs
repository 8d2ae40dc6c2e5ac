//! Pooled boxes for values that one thread makes and another thread drops.

use crate::item::{self, Item, Lent};
use crate::object_shared::{ObjectPoolStats, Shared};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// A bounded pool of boxes for values of one type.
///
/// [`BoxPool::alloc`] moves a value into an idle box. Dropping the [`Pooled`] drops the value and keeps the box.
///
/// An allocator sends memory that another thread frees back to the thread that owns it. Here the freeing thread keeps the box.
/// Once its own tier is full or empty, a thread exchanges half of the tier with the shared one under a lock: at most once in 64 operations.
///
/// [`ObjectPool`](crate::ObjectPool) keeps objects that are costly to make. A `BoxPool` keeps memory only, for values that are cheap to make.
///
/// `objects_max` bounds the boxes, idle and lent together. Beyond it boxes come from the allocator, count as unpooled, and are freed on
/// return. Dropping the pool frees the idle boxes of the shared tier and of the current thread. Lent boxes stay valid, and are freed when they
/// are dropped. Another thread frees the idle boxes of its own tier when another pool needs the place, or when the thread ends.
///
/// ```
/// use perf_pool::BoxPool;
/// use std::thread;
///
/// let pool = BoxPool::new(1024);
/// let message = pool.alloc([7_u8; 200]);
/// thread::spawn(move || assert_eq!(message[0], 7)).join().expect("no panics");
/// assert_eq!(pool.stats().created, 1);
/// ```
pub struct BoxPool<T: Send + 'static> {
    id: u64,
    shared: Arc<Shared<Item<Option<T>>>>,
}

/// The most idle boxes in one thread's tier. Half of them move at a time.
const THREAD_OBJECTS_MAX: usize = 128;

impl<T: Send + 'static> BoxPool<T> {
    /// A pool of at most `objects_max` boxes, idle and in use together. A thread keeps up to 128 idle ones for itself.
    #[must_use]
    pub fn new(objects_max: usize) -> Self {
        Self::with_thread_objects_max(objects_max, THREAD_OBJECTS_MAX)
    }

    /// A pool whose threads keep at most `thread_objects_max` idle boxes each. With 0 every operation takes the shared tier's lock.
    #[must_use]
    pub fn with_thread_objects_max(objects_max: usize, thread_objects_max: usize) -> Self {
        let shared = Arc::new(Shared::new(objects_max, thread_objects_max));
        Self {
            id: shared.id,
            shared,
        }
    }

    /// Moves a value into a box: an idle one of this thread, else an idle one of the shared tier, else a new one. O(1).
    #[inline]
    #[must_use]
    pub fn alloc(&self, value: T) -> Pooled<T> {
        match Lent::idle(self.id, &self.shared) {
            Some(mut lent) => {
                *lent.get_mut() = Some(value);
                Pooled { lent }
            }
            None => self.make(value),
        }
    }

    #[cold]
    #[inline(never)]
    fn make(&self, value: T) -> Pooled<T> {
        Pooled {
            lent: Lent::made(Some(value), self.shared.charge(), &self.shared),
        }
    }

    /// Frees the idle boxes of the shared tier and of this thread, and returns how many.
    pub fn trim(&self) -> usize {
        item::trim(&self.shared)
    }

    /// The pool's counts. `discarded` stays 0.
    #[must_use]
    pub fn stats(&self) -> ObjectPoolStats {
        self.shared.stats()
    }
}

impl<T: Send + 'static> Drop for BoxPool<T> {
    fn drop(&mut self) {
        item::close(&self.shared);
    }
}

impl<T: Send + 'static> fmt::Debug for BoxPool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxPool")
            .field("stats", &self.stats())
            .finish()
    }
}

/// A value in a box from a [`BoxPool`]: owned, one word, and sendable like a `Box`.
///
/// Dropping it drops the value in place, and then keeps the box on the dropping thread. If the value's own `drop` panics, the
/// pool keeps the box all the same, and the panic goes on.
pub struct Pooled<T: Send + 'static> {
    /// `Some` until `drop`. The box goes back when the field is dropped, after `drop` has emptied it.
    lent: Lent<Option<T>>,
}

impl<T: Send + 'static> Pooled<T> {
    /// Moves the value out, and gives the box back to the pool.
    #[must_use]
    pub fn into_inner(mut self) -> T {
        let value = self.lent.get_mut().take();
        value.expect("a pooled box holds its value until it is dropped")
    }
}

impl<T: Send + 'static> Drop for Pooled<T> {
    #[inline]
    fn drop(&mut self) {
        *self.lent.get_mut() = None;
    }
}

impl<T: Send + 'static> Deref for Pooled<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        let value = self.lent.get().as_ref();
        value.expect("a pooled box holds its value until it is dropped")
    }
}

impl<T: Send + 'static> DerefMut for Pooled<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        let value = self.lent.get_mut().as_mut();
        value.expect("a pooled box holds its value until it is dropped")
    }
}

impl<T: Send + 'static> AsRef<T> for Pooled<T> {
    fn as_ref(&self) -> &T {
        self
    }
}

impl<T: Send + fmt::Debug + 'static> fmt::Debug for Pooled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T: Send + fmt::Display + 'static> fmt::Display for Pooled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}
