//! Each thread's counters: written by one thread with plain loads and stores, read by all.

use crate::class::{POOL_SLOTS, SLOTS};
use crate::core::Core;
use crate::primitive::cold::{AtomicU64, Mutex, Relaxed, lock};

/// How many more buffers fit into a slot. Written by the slot's thread alone; others read it to count idle buffers.
#[derive(Debug)]
pub(crate) struct Room(AtomicU64);

impl Room {
    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    #[inline]
    pub(crate) fn set(&self, room: u64) {
        self.0.store(room, Relaxed);
    }
}

/// What one class of a pool did and holds in all threads' tiers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) guards: u64,
    pub(crate) bytes: u64,
    pub(crate) idle: u64,
    pub(crate) frozen: u64,
}

/// The hits and idle buffers of one thread, by slot of its tier.
///
/// Leaked, and recycled through a free list when the thread ends: memory is bounded by the most
/// threads that ever used pools at once.
#[derive(Debug)]
pub(crate) struct Block {
    owners: [AtomicU64; POOL_SLOTS],
    guards: [AtomicU64; SLOTS],
    bytes: [AtomicU64; SLOTS],
    rooms: [Room; SLOTS],
    spares: [AtomicU64; SLOTS],
    rings: [AtomicU64; SLOTS],
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
            rooms: [const { Room(AtomicU64::new(0)) }; SLOTS],
            spares: [const { AtomicU64::new(0) }; SLOTS],
            rings: [const { AtomicU64::new(0) }; SLOTS],
        }
    }

    /// Counts a buffer served from slot `index`. Only the owning thread calls this, so a plain load and
    /// store lose nothing; `Relaxed` because a count publishes no data.
    #[inline]
    pub(crate) fn count_guard(&self, index: usize) {
        let cell = &self.guards[index];
        cell.store(cell.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// Counts a retained frozen buffer that slot `index` served, as [`Block::count_guard`] does.
    #[inline]
    pub(crate) fn count_bytes(&self, index: usize) {
        let cell = &self.bytes[index];
        cell.store(cell.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// How many more buffers fit into slot `index`.
    #[inline]
    pub(crate) fn room(&self, index: usize) -> &Room {
        &self.rooms[index]
    }

    /// Says how many buffers the spare magazine of slot `index` holds.
    pub(crate) fn set_spare(&self, index: usize, len: usize) {
        self.spares[index].store(len as u64, Relaxed);
    }

    /// Says how many frozen buffers the ring of slot `index` holds.
    pub(crate) fn set_ring(&self, index: usize, len: usize) {
        self.rings[index].store(len as u64, Relaxed);
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

/// Calls `each` with the sums of every class of a pool, those of living threads included. No hit is counted twice:
/// hand-overs take the same lock.
pub(crate) fn sums_of(core: &Core, mut each: impl FnMut(usize, Sums)) {
    let register = lock(&REGISTER);
    for (number, class) in core.classes.iter().enumerate() {
        let index = class.tag.index();
        let mut sums = Sums {
            guards: class.guard_hits.load(Relaxed),
            bytes: class.bytes_hits.load(Relaxed),
            ..Sums::default()
        };
        for block in &register.all {
            if block.owners[class.tag.pool_slot()].load(Relaxed) == core.id() {
                sums.guards += block.guards[index].load(Relaxed);
                sums.bytes += block.bytes[index].load(Relaxed);
                sums.idle += (class.magazine_len as u64).saturating_sub(block.rooms[index].get());
                sums.idle += block.spares[index].load(Relaxed);
                sums.frozen += block.rings[index].load(Relaxed);
            }
        }
        each(number, sums);
    }
}
