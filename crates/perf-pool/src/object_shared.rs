//! What all threads of a pool of objects share: a bounded number of idle objects under one lock.

use crate::budget::Budget;
use crate::primitive::cold::{AtomicU64, Mutex, Relaxed, lock};
use std::mem;

pub(crate) struct Shared<T> {
    pub(crate) id: u64,
    pub(crate) thread_objects_max: usize,
    idle: Mutex<SharedIdle<T>>,
    budget: Budget,
    created: AtomicU64,
    unpooled: AtomicU64,
    lost: AtomicU64,
}

struct SharedIdle<T> {
    objects: Vec<Box<T>>,
    is_closed: bool,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// What a pool of objects holds and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectPoolStats {
    /// Pooled objects, idle and lent, now.
    pub charged_objects: u64,
    /// The most there ever were.
    pub charged_objects_peak: u64,
    /// The bound on both.
    pub objects_max: u64,
    /// Objects made because none was idle.
    pub created: u64,
    /// Objects made beyond the bound.
    pub unpooled: u64,
    /// Pooled objects that left: detached, or lost to a panic in the reset hook.
    pub discarded: u64,
}

/// The charge of an object that is being made; released unless kept.
pub(crate) struct Charge<'a, T> {
    shared: &'a Shared<T>,
    is_pooled: bool,
}

impl<T> Charge<'_, T> {
    pub(crate) fn is_pooled(&self) -> bool {
        self.is_pooled
    }

    /// The object exists: counts it, and says whether it is pooled.
    pub(crate) fn keep(self) -> bool {
        let counter = if self.is_pooled {
            &self.shared.created
        } else {
            &self.shared.unpooled
        };
        counter.fetch_add(1, Relaxed);
        let is_pooled = self.is_pooled;
        mem::forget(self);
        is_pooled
    }
}

impl<T> Drop for Charge<'_, T> {
    fn drop(&mut self) {
        if self.is_pooled {
            self.shared.release(1);
        }
    }
}

impl<T> Shared<T> {
    /// Moves up to `count` shared objects to `into`, which has room for them.
    pub(crate) fn take_some(&self, into: &mut Vec<Box<T>>, count: usize) {
        let mut idle = lock(&self.idle);
        let from = idle.objects.len().saturating_sub(count);
        into.extend(idle.objects.drain(from..));
    }

    /// One shared object.
    pub(crate) fn take_one(&self) -> Option<Box<T>> {
        lock(&self.idle).objects.pop()
    }

    /// Shares objects. In a closed pool they stay with the caller, to be dropped outside every borrow.
    pub(crate) fn put_some(&self, objects: &mut Vec<Box<T>>, keep: usize) {
        let mut idle = lock(&self.idle);
        if !idle.is_closed {
            idle.objects
                .extend(objects.drain(keep.min(objects.len())..));
        }
    }

    /// Shares one object, or gives it back if the pool is closed.
    pub(crate) fn put_one(&self, object: Box<T>) -> Option<Box<T>> {
        let mut idle = lock(&self.idle);
        if idle.is_closed {
            return Some(object);
        }
        idle.objects.push(object);
        None
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.idle).is_closed
    }

    pub(crate) fn new(objects_max: usize, thread_objects_max: usize) -> Self {
        Self {
            id: NEXT_ID.fetch_add(1, Relaxed),
            // More than all there are says the same.
            thread_objects_max: thread_objects_max.min(objects_max),
            idle: Mutex::new(SharedIdle {
                objects: Vec::new(),
                is_closed: false,
            }),
            budget: Budget::new(objects_max as u64),
            created: AtomicU64::new(0),
            unpooled: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// Charges an object that is to be made, if the bound allows.
    pub(crate) fn charge(&self) -> Charge<'_, T> {
        Charge {
            is_pooled: self.budget.reserve(1),
            shared: self,
        }
    }

    /// Releases the charge of objects that were dropped.
    pub(crate) fn release(&self, count: u64) {
        self.budget.release(count);
    }

    /// Releases the charge of an object that left.
    pub(crate) fn lose(&self) {
        self.release(1);
        self.lost.fetch_add(1, Relaxed);
    }

    /// All shared objects. Their charge is the caller's to release.
    pub(crate) fn take_all(&self) -> Vec<Box<T>> {
        mem::take(&mut lock(&self.idle).objects)
    }

    /// Keeps no more objects. Those that were shared are the caller's to drop.
    pub(crate) fn close(&self) -> Vec<Box<T>> {
        let mut idle = lock(&self.idle);
        idle.is_closed = true;
        mem::take(&mut idle.objects)
    }

    pub(crate) fn stats(&self) -> ObjectPoolStats {
        ObjectPoolStats {
            charged_objects: self.budget.charged(),
            charged_objects_peak: self.budget.peak(),
            objects_max: self.budget.limit(),
            created: self.created.load(Relaxed),
            unpooled: self.unpooled.load(Relaxed),
            discarded: self.lost.load(Relaxed),
        }
    }
}
