//! The idle objects of one thread, of any pools.
//!
//! No user code runs while the thread-local is borrowed: taking and keeping move boxes only, and what must be
//! dropped is handed out first. When the thread ends, objects go to their pools' shared tiers.

use crate::object_shared::Shared;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Pools that have a tier on one thread at the same time; which ones share a place follows from their ids.
const PLACES: usize = 8;

/// Slow operations of another pool that a place's pool survives, as for byte buffers.
const EVICT_AFTER: u32 = 256;

/// Room for so many idle objects is made at once, so that returns do not allocate.
const RESERVED_MAX: usize = 256;

/// One idle object per place, reached without a borrow: the hot path. As with byte buffers, this
/// thread-local has no destructor; `Places` owns what lies in it and empties it.
struct Hot {
    id: Cell<u64>,
    object: Cell<ManuallyDrop<Option<Box<dyn Any + Send>>>>,
}

const NO_POOL: u64 = u64::MAX;

thread_local! {
    static HOT: [Hot; PLACES] = const {
        [const {
            Hot { id: Cell::new(NO_POOL), object: Cell::new(ManuallyDrop::new(None)) }
        }; PLACES]
    };
}

impl Hot {
    #[inline]
    fn take(&self) -> Option<Box<dyn Any + Send>> {
        ManuallyDrop::into_inner(self.object.replace(ManuallyDrop::new(None)))
    }
}

#[inline]
fn take_hot<T: Send + 'static>(id: u64) -> Option<Box<T>> {
    HOT.try_with(|places| {
        let hot = &places[place_of(id)];
        if hot.id.get() != id {
            return None;
        }
        // A pool's id stands for its type, so the downcast succeeds.
        hot.take()?.downcast().ok()
    })
    .ok()
    .flatten()
}

/// Keeps an object if the cell is this pool's and free.
#[inline]
fn keep_hot<T: Send + 'static>(id: u64, object: Box<T>) -> Option<Box<T>> {
    let rest = HOT.try_with(|places| {
        let hot = &places[place_of(id)];
        if hot.id.get() != id {
            return Some(object);
        }
        let before = hot
            .object
            .replace(ManuallyDrop::new(Some(object as Box<dyn Any + Send>)));
        ManuallyDrop::into_inner(before)?.downcast().ok()
    });
    rest.unwrap_or_default()
}

/// Ends a place's hot cell; the object in it is returned.
fn disarm(place: usize) -> Option<Box<dyn Any + Send>> {
    HOT.try_with(|places| {
        places[place].id.set(NO_POOL);
        places[place].take()
    })
    .ok()
    .flatten()
}

fn arm(place: usize, id: u64) {
    let _ = HOT.try_with(|places| places[place].id.set(id));
}

struct Idle<T: Send + 'static> {
    shared: Arc<Shared<T>>,
    /// A copy, because the shared part lies on a line that others write.
    objects_max: usize,
    objects: Vec<Box<T>>,
}

/// What can be done with idle objects whose type is not known.
trait Erased: Any {
    /// Hands all objects, and the one from the hot cell, to the shared tier; those of a closed pool stay, and are dropped with `self`.
    fn hand_over(&mut self, last: Option<Box<dyn Any + Send>>);
    /// Drops what [`Erased::hand_over`] left. A panic of an object's own `drop` costs that object only.
    fn drop_rest(&mut self);
    fn is_closed(&self) -> bool;
}

impl<T: Send + 'static> Erased for Idle<T> {
    fn hand_over(&mut self, last: Option<Box<dyn Any + Send>>) {
        let last = last.and_then(|object| object.downcast().ok());
        self.objects.extend(last);
        self.shared.put_some(&mut self.objects, 0);
    }

    fn drop_rest(&mut self) {
        while let Some(object) = self.objects.pop() {
            let _ = catch_unwind(AssertUnwindSafe(|| drop(object)));
        }
    }

    fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }
}

struct Place {
    id: u64,
    pressure: u32,
    idle: Option<Box<dyn Erased>>,
}

struct Places([Place; PLACES]);

thread_local! {
    static PLACES_HERE: RefCell<Places> = const {
        RefCell::new(Places([const { Place { id: NO_POOL, pressure: 0, idle: None } }; PLACES]))
    };
}

fn place_of(id: u64) -> usize {
    (id % PLACES as u64) as usize
}

impl Places {
    #[inline]
    fn find<T: Send + 'static>(&mut self, id: u64) -> Option<&mut Idle<T>> {
        let place = &mut self.0[place_of(id)];
        if place.id != id {
            return None;
        }
        let erased: &mut dyn Any = &mut **place.idle.as_mut()?;
        erased.downcast_mut()
    }

    /// Gives the pool its place, unless another holds it. What the other leaves is returned: it may hold
    /// objects to drop.
    fn settle<T: Send + 'static>(&mut self, shared: &Arc<Shared<T>>) -> Option<Box<dyn Erased>> {
        let place = &mut self.0[place_of(shared.id)];
        if let Some(idle) = &mut place.idle {
            if !idle.is_closed() && place.pressure < EVICT_AFTER {
                place.pressure += 1;
                return None;
            }
            idle.hand_over(disarm(place_of(shared.id)));
        }
        place.pressure = 0;
        place.id = shared.id;
        if shared.thread_objects_max > 0 {
            arm(place_of(shared.id), shared.id);
        }
        place.idle.replace(Box::new(Idle {
            shared: Arc::clone(shared),
            objects_max: shared.thread_objects_max,
            objects: Vec::with_capacity(shared.thread_objects_max.min(RESERVED_MAX)),
        }))
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for (number, place) in self.0.iter_mut().enumerate() {
            let last = disarm(number);
            if let Some(idle) = &mut place.idle {
                idle.hand_over(last);
                // The thread ends: a panic here would end the process.
                idle.drop_rest();
            }
        }
    }
}

fn with_places<R>(f: impl FnOnce(&mut Places) -> Option<R>) -> Option<R> {
    PLACES_HERE
        .try_with(|places| f(&mut *places.try_borrow_mut().ok()?))
        .ok()
        .flatten()
}

/// An idle object of this thread, else a shared one.
#[inline]
pub(crate) fn take<T: Send + 'static>(shared: &Arc<Shared<T>>) -> Option<Box<T>> {
    take_here(shared.id).or_else(|| take_shared(shared))
}

/// An idle object of this thread.
#[inline]
pub(crate) fn take_here<T: Send + 'static>(id: u64) -> Option<Box<T>> {
    take_hot(id).or_else(|| take_idle(id))
}

fn take_idle<T: Send + 'static>(id: u64) -> Option<Box<T>> {
    with_places(|places| places.find::<T>(id)?.objects.pop())
}

#[cold]
pub(crate) fn take_shared<T: Send + 'static>(shared: &Arc<Shared<T>>) -> Option<Box<T>> {
    with_places(|places| {
        let idle = places.find::<T>(shared.id)?;
        shared.take_some(&mut idle.objects, shared.thread_objects_max.div_ceil(2));
        idle.objects.pop()
    })
    .or_else(|| shared.take_one())
}

/// Keeps an object on this thread, else shared; gives it back if the pool is closed.
#[inline]
pub(crate) fn keep<T: Send + 'static>(shared: &Arc<Shared<T>>, object: Box<T>) -> Option<Box<T>> {
    match keep_here(shared.id, object) {
        Some(object) => keep_shared(shared, object),
        None => None,
    }
}

/// Keeps an object on this thread, or gives it back if there is no room.
#[inline]
pub(crate) fn keep_here<T: Send + 'static>(id: u64, object: Box<T>) -> Option<Box<T>> {
    match keep_hot(id, object) {
        Some(object) => keep_idle(id, object),
        None => None,
    }
}

fn keep_idle<T: Send + 'static>(id: u64, object: Box<T>) -> Option<Box<T>> {
    let mut object = Some(object);
    with_places(|places| {
        let idle = places.find::<T>(id)?;
        // One more lies in the hot cell.
        if idle.objects.len() + 1 < idle.objects_max {
            idle.objects.push(object.take()?);
        }
        Some(())
    });
    object
}

/// Keeps an object that this thread had no room for; gives it back if the pool is closed.
#[cold]
pub(crate) fn keep_shared<T: Send + 'static>(
    shared: &Arc<Shared<T>>,
    object: Box<T>,
) -> Option<Box<T>> {
    if shared.thread_objects_max == 0 {
        return shared.put_one(object);
    }
    let mut object = Some(object);
    let mut left = None;
    with_places(|places| {
        if places.find::<T>(shared.id).is_none() {
            // A pool that is gone takes no place: its objects are dropped as they come.
            if shared.is_closed() {
                return None;
            }
            left = places.settle(shared);
        }
        let idle = places.find::<T>(shared.id)?;
        // One more lies in the hot cell.
        if idle.objects.len() + 1 >= shared.thread_objects_max {
            shared.put_some(&mut idle.objects, shared.thread_objects_max / 2);
        }
        if idle.objects.len() + 1 < shared.thread_objects_max {
            idle.objects.push(object.take()?);
        }
        Some(())
    });
    // Objects of a pool that is gone: dropped here, outside the borrow.
    drop(left);
    shared.put_one(object?)
}

/// Hands this thread's objects of a pool over, and gives up the place.
pub(crate) fn flush(id: u64) {
    let left = with_places(|places| {
        let place = &mut places.0[place_of(id)];
        if place.id != id {
            return None;
        }
        place.id = NO_POOL;
        let mut idle = place.idle.take()?;
        idle.hand_over(disarm(place_of(id)));
        Some(idle)
    });
    drop(left);
}

#[cfg(all(test, not(perf_loom)))]
mod tests {
    use super::{Shared, keep, take};
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn a_pool_that_is_gone_takes_no_place_on_a_thread() {
        // A thread of its own: the places of others are taken or not.
        let of_closed = thread::spawn(|| {
            let shared = Arc::new(Shared::<u32>::new(8, 8));
            drop(shared.close());
            (0..3)
                .filter_map(|number| keep(&shared, Box::new(number)))
                .count()
        });
        assert_eq!(of_closed.join().expect("no panics"), 3);
        let of_open = thread::spawn(|| {
            let shared = Arc::new(Shared::<u32>::new(8, 8));
            let kept = (0..3).all(|number| keep(&shared, Box::new(number)).is_none());
            (kept, (0..3).filter_map(|_| take(&shared)).count())
        });
        assert_eq!(of_open.join().expect("no panics"), (true, 3));
    }
}
