//! A pool of objects.

use crate::object_local;
use crate::object_shared::{ObjectPoolStats, Shared};
use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

type Create<T> = Box<dyn Fn() -> T + Send + Sync>;
type Reset<T> = Box<dyn Fn(&mut T) + Send + Sync>;

/// A bounded pool of objects that are costly to make: encoders, scratch tables, parsed templates.
///
/// Each thread keeps a few idle objects of its own; the rest is shared under a lock that moves several
/// at a time. The hooks run outside every lock and thread-local borrow. A hook that panics costs at most
/// its object: the panic goes on to the caller (unless that one is panicking already), the pool works on.
///
/// At the bound (`objects_max` idle and lent together) further objects are made, counted as unpooled and
/// dropped on return.
///
/// Dropping the pool drops the idle objects that are shared or this thread's. Other threads drop what they keep, up to
/// [`thread_objects_max`](ObjectPoolBuilder::thread_objects_max) each, when another pool needs the place or when they end. Set that to 0
/// if objects must not outlive the pool, such as open files.
///
/// ```
/// use perf_pool::ObjectPool;
///
/// let pool = ObjectPool::builder(|| Vec::<u32>::with_capacity(256)).reset(Vec::clear).build();
/// let mut scratch = pool.get();
/// scratch.push(1);
/// drop(scratch);
/// assert!(pool.get().is_empty());
/// assert_eq!(pool.stats().created, 1);
/// ```
pub struct ObjectPool<T: Send + 'static> {
    shared: Arc<Shared<T>>,
    create: Create<T>,
    reset: Option<Reset<T>>,
}

/// How an [`ObjectPool`] is made.
pub struct ObjectPoolBuilder<T: Send + 'static> {
    create: Create<T>,
    reset: Option<Reset<T>>,
    objects_max: usize,
    thread_objects_max: usize,
}

impl<T: Send + 'static> ObjectPoolBuilder<T> {
    /// What is done to an object when it comes back, before it is lent again.
    #[must_use]
    pub fn reset(mut self, reset: impl Fn(&mut T) + Send + Sync + 'static) -> Self {
        self.reset = Some(Box::new(reset));
        self
    }

    /// Bounds the pooled objects, idle and lent together. Default: 1024.
    #[must_use]
    pub fn objects_max(mut self, objects: usize) -> Self {
        self.objects_max = objects;
        self
    }

    /// Bounds the idle objects that one thread keeps for itself. Default: 16. With 0 every operation takes the shared tier's lock.
    #[must_use]
    pub fn thread_objects_max(mut self, objects: usize) -> Self {
        self.thread_objects_max = objects;
        self
    }

    /// The pool, empty.
    #[must_use]
    pub fn build(self) -> ObjectPool<T> {
        ObjectPool {
            shared: Arc::new(Shared::new(self.objects_max, self.thread_objects_max)),
            create: self.create,
            reset: self.reset,
        }
    }
}

impl<T: Send + 'static> ObjectPool<T> {
    /// Starts a pool whose objects `create` makes.
    pub fn builder(create: impl Fn() -> T + Send + Sync + 'static) -> ObjectPoolBuilder<T> {
        ObjectPoolBuilder {
            create: Box::new(create),
            reset: None,
            objects_max: 1024,
            thread_objects_max: 16,
        }
    }

    /// Lends an object: an idle one of this thread, else a shared one, else a new one.
    ///
    /// # Panics
    /// Only if the create hook does.
    #[inline]
    pub fn get(&self) -> ObjectGuard<'_, T> {
        match object_local::take(&self.shared) {
            Some(object) => ObjectGuard {
                pool: self,
                object: Some(object),
                is_pooled: true,
            },
            None => self.make(),
        }
    }

    #[cold]
    fn make(&self) -> ObjectGuard<'_, T> {
        // Gives the charge back if the hook panics.
        let charge = self.shared.charge();
        let object = Box::new((self.create)());
        let is_pooled = charge.keep();
        ObjectGuard {
            pool: self,
            object: Some(object),
            is_pooled,
        }
    }

    /// Resets an object and keeps it.
    #[inline]
    fn give_back(&self, mut object: Box<T>, is_pooled: bool) {
        if let Some(reset) = &self.reset {
            if std::thread::panicking() {
                // A second panic would abort the process.
                if catch_unwind(AssertUnwindSafe(|| reset(&mut object))).is_err() {
                    self.lose(is_pooled);
                    return;
                }
            } else {
                let loss = Loss {
                    pool: self,
                    is_pooled,
                };
                reset(&mut object);
                mem::forget(loss);
            }
        }
        if is_pooled {
            // What found no place is dropped here, outside every borrow.
            if let Some(object) = object_local::keep(&self.shared, object) {
                self.shared.release(1);
                drop(object);
            }
        }
    }

    #[cold]
    fn lose(&self, is_pooled: bool) {
        if is_pooled {
            self.shared.lose();
        }
    }

    /// Drops the idle objects that are shared or this thread's, and says how many.
    pub fn trim(&self) -> usize {
        object_local::flush(self.shared.id);
        let objects = self.shared.take_all();
        self.shared.release(objects.len() as u64);
        objects.len()
    }

    /// What the pool holds and did.
    #[must_use]
    pub fn stats(&self) -> ObjectPoolStats {
        self.shared.stats()
    }
}

impl<T: Send + 'static> Drop for ObjectPool<T> {
    fn drop(&mut self) {
        object_local::flush(self.shared.id);
        drop(self.shared.close());
    }
}

/// Counts an object as lost if the reset hook panics.
struct Loss<'a, T: Send + 'static> {
    pool: &'a ObjectPool<T>,
    is_pooled: bool,
}

impl<T: Send + 'static> Drop for Loss<'_, T> {
    fn drop(&mut self) {
        self.pool.lose(self.is_pooled);
    }
}

/// A lent object. It is reset and goes back when the guard is dropped, on whatever thread that is.
pub struct ObjectGuard<'a, T: Send + 'static> {
    pool: &'a ObjectPool<T>,
    /// `None` only while the guard is being taken apart.
    object: Option<Box<T>>,
    is_pooled: bool,
}

impl<T: Send + 'static> ObjectGuard<'_, T> {
    /// Takes the object out of the pool for good, without reset; its charge is released.
    #[must_use]
    pub fn detach(mut self) -> T {
        let object = self.object.take();
        self.pool.lose(self.is_pooled);
        *object.expect("a guard holds its object until it is consumed")
    }
}

impl<T: Send + 'static> Drop for ObjectGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            self.pool.give_back(object, self.is_pooled);
        }
    }
}

impl<T: Send + 'static> Deref for ObjectGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        let object = self.object.as_ref();
        object.expect("a guard holds its object until it is consumed")
    }
}

impl<T: Send + 'static> DerefMut for ObjectGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        let object = self.object.as_mut();
        object.expect("a guard holds its object until it is consumed")
    }
}

impl<T: Send + fmt::Debug + 'static> fmt::Debug for ObjectGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ObjectGuard").field(&**self).finish()
    }
}

impl<T: Send + 'static> fmt::Debug for ObjectPool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectPool")
            .field("stats", &self.stats())
            .finish()
    }
}

impl<T: Send + 'static> fmt::Debug for ObjectPoolBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectPoolBuilder")
            .field("objects_max", &self.objects_max)
            .field("thread_objects_max", &self.thread_objects_max)
            .finish_non_exhaustive()
    }
}
