//! Each thread's counters: written by one thread with plain loads and stores, read by all.

use crate::class::{POOL_SLOTS, SLOTS};
use crate::core::Core;
use crate::primitive::cold::{AtomicU64, Mutex, Relaxed, lock};

/// The hits of one thread, by slot of its tier.
///
/// Leaked, and recycled through a free list when the thread ends: memory is bounded by the most
/// threads that ever used pools at once.
#[derive(Debug)]
pub(crate) struct Block {
    owners: [AtomicU64; POOL_SLOTS],
    guards: [AtomicU64; SLOTS],
    bytes: [AtomicU64; SLOTS],
}

const NO_OWNER: u64 = u64::MAX;

/// What a thread points at before it owns a block. Never written: a hit needs an armed slot.
pub(crate) static UNARMED: Block = Block::new();

struct Register {
    all: Vec<&'static Block>,
    free: Vec<&'static Block>,
}

static REGISTER: Mutex<Register> = Mutex::new(Register {
    all: Vec::new(),
    free: Vec::new(),
});

impl Block {
    const fn new() -> Self {
        Self {
            owners: [const { AtomicU64::new(NO_OWNER) }; POOL_SLOTS],
            guards: [const { AtomicU64::new(0) }; SLOTS],
            bytes: [const { AtomicU64::new(0) }; SLOTS],
        }
    }

    /// Counts a buffer served from slot `index`. Only the owning thread calls this, so a plain load and
    /// store lose nothing; `Relaxed` because a count publishes no data.
    #[inline]
    pub(crate) fn count_guard(&self, index: usize) {
        let cell = &self.guards[index];
        cell.store(cell.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// The same for a retained frozen buffer.
    #[inline]
    pub(crate) fn count_bytes(&self, index: usize) {
        let cell = &self.bytes[index];
        cell.store(cell.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// A block for this thread alone.
    pub(crate) fn lease() -> &'static Self {
        let mut register = lock(&REGISTER);
        register.free.pop().unwrap_or_else(|| {
            let block: &'static Self = Box::leak(Box::new(Self::new()));
            register.all.push(block);
            block
        })
    }

    /// Ends a lease. All slots have been disowned.
    pub(crate) fn give_back(&'static self) {
        lock(&REGISTER).free.push(self);
    }

    /// From now on the slots of pool slot `pool_slot` count for `core`.
    pub(crate) fn own(&self, pool_slot: usize, core: &Core) {
        let _register = lock(&REGISTER);
        self.owners[pool_slot].store(core.id(), Relaxed);
    }

    /// Hands the counts of a pool slot over to its pool, so that they outlive the thread.
    pub(crate) fn disown(&self, pool_slot: usize, core: &Core) {
        let _register = lock(&REGISTER);
        for class in &core.classes {
            let index = class.tag.index();
            class
                .guard_hits
                .fetch_add(self.guards[index].swap(0, Relaxed), Relaxed);
            class
                .bytes_hits
                .fetch_add(self.bytes[index].swap(0, Relaxed), Relaxed);
        }
        self.owners[pool_slot].store(NO_OWNER, Relaxed);
    }
}

/// Calls `each` with the hits (guards, bytes) of every class of a pool, those of living threads
/// included. Nothing is counted twice: hand-overs take the same lock.
pub(crate) fn hits_of(core: &Core, mut each: impl FnMut(usize, u64, u64)) {
    let register = lock(&REGISTER);
    for (number, class) in core.classes.iter().enumerate() {
        let index = class.tag.index();
        let mut guards = class.guard_hits.load(Relaxed);
        let mut bytes = class.bytes_hits.load(Relaxed);
        for block in &register.all {
            if block.owners[class.tag.pool_slot()].load(Relaxed) == core.id() {
                guards += block.guards[index].load(Relaxed);
                bytes += block.bytes[index].load(Relaxed);
            }
        }
        each(number, guards, bytes);
    }
}
