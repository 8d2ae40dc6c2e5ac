//! The fronts of a thread, for reads through a shared cache.
//!
//! A front is taken out of its slot while it is used, so nothing is borrowed when keys are compared or values are read, cloned and dropped.
//! A read within such a read finds the slot empty and goes to the shared table.

use crate::fronts::Fronts;
use std::any::Any;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// How many values of a cache each thread keeps at hand: room for a node's few dozen hot keys, in 2 KiB.
pub const FRONT_PLACES: usize = 64;

/// How many a thread keeps, in 72 KiB, of a cache without a weigher whose capacity is 16 times that or more, once it reads more keys than
/// [`FRONT_PLACES`] have room for: two places for each of a thousand keys, still within a processor's second cache.
pub const WIDE_FRONT_PLACES: usize = 2048;

/// How many caches have a front on a thread at once. Those whose ids share their lowest bits take turns.
const SLOTS: usize = 8;
/// A front is judged after it had no answer so many times: by then a wide one is full.
const MISSES_JUDGED: u32 = 4096;
/// It pays if of so many reads at most one has no answer: an answer saves less than a read in vain costs on top.
const ASKED_PER_MISS: u32 = 3;
/// For so many reads a front that did not pay is not asked. Trying again costs less than 2 % of them.
const REST_READS: u32 = 1 << 18;
/// Reads of other caches that a slot's cache survives, so that two in turn do not make a new front at each read.
const EVICT_AFTER: u32 = 1024;

struct Slot {
    /// The cache whose front is or belongs here; zero is none.
    cache: Cell<u64>,
    alive: Cell<Weak<()>>,
    front: Cell<Option<Box<dyn Any>>>,
    pressure: Cell<u32>,
    /// Reads that asked this front, and those of them that it had no answer for, since it was last judged.
    asked: Cell<u32>,
    missed: Cell<u32>,
}

/// A cache, and for how many more reads its front rests.
type Rest = Cell<(u64, u32)>;

thread_local! {
    /// Apart from the slots, and without a destructor, so that a read learns in a few steps that a front rests.
    static RESTS: [Rest; SLOTS] = const { [const { Cell::new((0, 0)) }; SLOTS] };
}

/// Whether this thread does not ask its front of a cache, because it did not pay of late. Counts the read.
#[inline]
pub(crate) fn rests(cache: u64) -> bool {
    RESTS.with(|rests| {
        let rest = &rests[cache as usize % SLOTS];
        let (of, reads) = rest.get();
        let rests = of == cache && reads > 0;
        if rests {
            rest.set((of, reads - 1));
        }
        rests
    })
}

/// How many caches were dropped.
static DROPPED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// As many dropped caches this thread has looked for.
    static SWEPT: Cell<u64> = const { Cell::new(0) };
}

/// The life of a cache. When it ends, the fronts that this thread has of dropped caches go at once, and those of another thread when that one next
/// reads past a front or ends.
#[derive(Debug)]
pub(crate) struct Life(Option<Arc<()>>);

impl Life {
    pub(crate) fn new() -> Self {
        Self(Some(Arc::new(())))
    }

    fn watch(&self) -> Weak<()> {
        self.0.as_ref().map(Arc::downgrade).unwrap_or_default()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        drop(self.0.take());
        // Relaxed: a thread that sees the count late sweeps late.
        DROPPED.fetch_add(1, Ordering::Relaxed);
        sweep();
    }
}

/// Drops this thread's fronts of dropped caches, if there are new ones. With nothing borrowed: values are code of the user.
pub(crate) fn sweep() {
    let dropped = DROPPED.load(Ordering::Relaxed);
    if SWEPT.try_with(|swept| swept.replace(dropped)) == Ok(dropped) {
        return;
    }
    let dead = SLOTS_OF_THREAD.try_with(|slots| {
        std::array::from_fn::<_, SLOTS, _>(|at| {
            let slot = &slots[at];
            let alive = slot.alive.take();
            if slot.cache.get() == 0 || alive.strong_count() > 0 {
                slot.alive.set(alive);
                return None;
            }
            slot.cache.set(0);
            slot.front.take()
        })
    });
    drop(dead);
}

thread_local! {
    static SLOTS_OF_THREAD: [Slot; SLOTS] = const {
        [const { Slot { cache: Cell::new(0), alive: Cell::new(Weak::new()), front: Cell::new(None), pressure: Cell::new(0), asked: Cell::new(0), missed: Cell::new(0) } }; SLOTS]
    };
}

/// The fronts of a cache that are out of their slot; they go back when dropped.
pub(crate) struct Lease<K: 'static, V: 'static> {
    cache: u64,
    /// Taken only by `drop`.
    fronts: Option<Box<Fronts<K, V>>>,
}

/// This thread's fronts of a cache. `None` while it is out, in another cache's slot, or at the end of the thread.
#[inline]
pub(crate) fn lease<K: 'static, V: 'static>(cache: u64, life: &Life) -> Option<Lease<K, V>> {
    let front = SLOTS_OF_THREAD
        .try_with(|slots| {
            let slot = &slots[cache as usize % SLOTS];
            if slot.cache.get() != cache {
                return Some(None);
            }
            slot.asked.set(slot.asked.get() + 1);
            Some(Some(slot.front.take()))
        })
        .ok()??;
    let front = match front {
        Some(front) => front?,
        None => claim::<K, V>(cache, life)?,
    };
    Some(Lease {
        cache,
        // A cache's id is its own, so it is of its types.
        fronts: Some(front.downcast().ok()?),
    })
}

#[cold]
fn claim<K: 'static, V: 'static>(cache: u64, life: &Life) -> Option<Box<dyn Any>> {
    let replaced = SLOTS_OF_THREAD
        .try_with(|slots| {
            let slot = &slots[cache as usize % SLOTS];
            if slot.cache.get() != 0 && slot.pressure.get() < EVICT_AFTER {
                slot.pressure.set(slot.pressure.get() + 1);
                return None;
            }
            slot.pressure.set(0);
            slot.forget();
            slot.cache.set(cache);
            slot.alive.set(life.watch());
            Some(slot.front.take())
        })
        .ok()??;
    // The other cache's values: code of the user.
    drop(replaced);
    Some(Box::new(Fronts::<K, V>::new()))
}

impl Slot {
    fn forget(&self) {
        self.asked.set(0);
        self.missed.set(0);
    }
}

impl<K, V> Lease<K, V> {
    /// Notes that the front had no answer. One that does not pay rests.
    pub(crate) fn miss(&self, has_widened: bool) {
        let _ = SLOTS_OF_THREAD.try_with(|slots| {
            let slot = &slots[self.cache as usize % SLOTS];
            if slot.cache.get() != self.cache {
                return;
            }
            let missed = slot.missed.get() + 1;
            slot.missed.set(missed);
            if has_widened {
                slot.forget();
            } else if missed >= MISSES_JUDGED {
                let pays = slot.asked.get() / ASKED_PER_MISS >= missed;
                slot.forget();
                if !pays {
                    let rest = (self.cache, REST_READS);
                    RESTS.with(|rests| rests[self.cache as usize % SLOTS].set(rest));
                }
            }
        });
    }

    #[inline]
    pub(crate) fn fronts(&mut self) -> Option<&mut Fronts<K, V>> {
        self.fronts.as_deref_mut()
    }
}

impl<K, V> Drop for Lease<K, V> {
    #[inline]
    fn drop(&mut self) {
        let front = self.fronts.take().map(|fronts| fronts as Box<dyn Any>);
        let cache = self.cache;
        let replaced = SLOTS_OF_THREAD.try_with(|slots| {
            let slot = &slots[cache as usize % SLOTS];
            if slot.cache.get() == cache {
                slot.front.replace(front)
            } else {
                front
            }
        });
        drop(replaced);
    }
}
