//! What is thrown out at capacity, and how the policy that suits the load is found.
//!
//! A policy is the window's share of the queues (`queues.rs`). The adaptive one runs a sample of the keys through two small tables without
//! values, one with a window of 1 % and one that is all window, and takes the share of the one with more hits. Nothing is
//! rebuilt: queues follow the new share insertion by insertion.

use crate::queues::{Limits, NONE, Payload};
use crate::table::Table;
use parking_lot::Mutex;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What is thrown out when a cache is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Policy {
    /// Whichever of the two would have had more hits of late: a sample of the keys is run through both. The default.
    #[default]
    Adaptive,
    /// W-TinyLFU: what is read more often than what it would replace is kept. Best where frequency tells, and under scans.
    TinyLfu,
    /// The least recently read goes, as exactly as a clock queue knows. Best where what was just read is read again.
    Lru,
    /// The W-TinyLFU of moka, for those who want its decisions: a cache of moka's holds the hash of each entry and says
    /// what goes. Reads stay on this crate's table, and moka is told of those within a sixteenth of a turnover as of
    /// one, so under steady popularity it hits 2 to 4 points less than by itself.
    ///
    /// Insertions cost moka's on top, and each entry some 200 bytes. A new value that moka does not admit is not kept,
    /// as in moka. After a change of the capacity moka knows no more how often keys were read.
    #[cfg(feature = "moka")]
    Moka,
}

/// The window's part of a capacity under TinyLFU: 1 %, as in the paper, and at least one entry.
const WINDOW_DIVISOR: u64 = 100;

/// Up to this capacity an adaptive cache remembers frequencies for longer than TinyLFU does. It then knows more of keys
/// that come seldom, and follows a change of what is popular later; it has LRU for that. In a larger one it would cost
/// 16 bytes per entry.
const LONG_MEMORY_MAX: u64 = 4096;

/// About how many entries a shadow of a large cache holds; half as many at least. They tell hit ratios apart to a point or two; more cost more.
const SHADOW_ENTRIES: u64 = 256;
/// A window has so many accesses per entry of a shadow.
const ACCESSES_PER_ENTRY: u64 = 1;
/// The other policy must lead by this share of a window's accesses, over the decaying sum of windows.
const LEAD_NUMERATOR: i64 = 3;
const LEAD_DENOMINATOR: i64 = 100;
/// A change so few windows after the one before raises a doubt: the load may have phases shorter than what the queues need to follow.
const WINDOWS_SOON: u32 = 8;
/// After so many windows without a change one doubt goes.
const WINDOWS_CALM: u32 = 64;
/// Each doubt doubles the lead that is asked for, and how long a lead is remembered.
const DOUBTS_MAX: u32 = 5;

/// The policy of one cache.
pub(crate) struct Chooser {
    is_lru: AtomicBool,
    switches: AtomicU64,
    setting: Policy,
    /// Made when the cache is half full for the first time: well before anything is thrown out.
    shadows: Mutex<Option<Box<Shadows>>>,
    /// Whether they are made. Only a hint.
    has_shadows: AtomicBool,
    /// One hash in `mask + 1` is shown to the shadows. Relaxed, as the others here: a number for itself.
    mask: AtomicU64,
}

impl Chooser {
    pub(crate) fn new(setting: Policy) -> Self {
        Self {
            is_lru: AtomicBool::new(!matches!(setting, Policy::Adaptive | Policy::TinyLfu)),
            switches: AtomicU64::new(0),
            setting,
            shadows: Mutex::new(None),
            has_shadows: AtomicBool::new(false),
            mask: AtomicU64::new(0),
        }
    }

    pub(crate) fn policy(&self) -> Policy {
        match self.setting {
            Policy::Adaptive if self.is_lru.load(Ordering::Relaxed) => Policy::Lru,
            Policy::Adaptive => Policy::TinyLfu,
            fixed => fixed,
        }
    }

    fn is_adaptive(&self) -> bool {
        self.setting == Policy::Adaptive
    }

    /// A table for a shard of a cache of this capacity.
    pub(crate) fn table<P: Payload>(&self, capacity: u64) -> Table<P> {
        match self.setting {
            Policy::Adaptive => Table::new().with_memory(capacity <= LONG_MEMORY_MAX),
            Policy::TinyLfu => Table::new(),
            _ => Table::new().without_frequencies(),
        }
    }

    pub(crate) fn switches(&self) -> u64 {
        self.switches.load(Ordering::Relaxed)
    }

    /// What the queues of a shard may hold.
    pub(crate) fn limits(&self, capacity: u64) -> Limits {
        limits(capacity, self.is_lru.load(Ordering::Relaxed))
    }

    /// Whether a hash is one of the sample.
    #[inline]
    pub(crate) fn samples(&self, hash: u64) -> bool {
        self.is_adaptive() && (hash >> 32) & self.mask.load(Ordering::Relaxed) == 0
    }

    /// Whether there are shadows, or a cache that holds so much has to make them.
    #[inline]
    pub(crate) fn is_ready(&self, weight: u64, capacity: u64) -> bool {
        self.has_shadows.load(Ordering::Relaxed) || weight >= capacity / 2
    }

    /// Shows an access of the sample to both shadows. `held` is what the whole cache holds now: entries, and their weight.
    #[cold]
    pub(crate) fn access(
        &self,
        hash: u64,
        weight: u32,
        capacity: u64,
        held: impl Fn() -> (u64, u64),
    ) {
        // A sample more or less decides nothing, so no caller waits for it.
        let Some(mut shadows) = self.shadows.try_lock() else {
            return;
        };
        if shadows.is_none() {
            let (entries, weight) = held();
            let weight = weight.max(1);
            let entries = entries as f64 * capacity as f64 / weight as f64;
            let new = Shadows::new(
                capacity,
                entries as u64,
                self.is_lru.load(Ordering::Relaxed),
            );
            self.mask.store(new.mask, Ordering::Relaxed);
            self.has_shadows.store(true, Ordering::Relaxed);
            *shadows = Some(Box::new(new));
        }
        let Some(shadows) = shadows.as_mut() else {
            return;
        };
        if (hash >> 32) & shadows.mask == 0 && shadows.access(hash, weight) {
            self.is_lru.store(shadows.is_lru, Ordering::Relaxed);
            self.switches.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The capacity has changed: the shadows are made anew.
    pub(crate) fn reset(&self) {
        *self.shadows.lock() = None;
        self.has_shadows.store(false, Ordering::Relaxed);
        self.mask.store(0, Ordering::Relaxed);
    }
}

fn limits(capacity: u64, is_lru: bool) -> Limits {
    let window = if is_lru {
        capacity
    } else {
        (capacity / WINDOW_DIVISOR).max(1)
    };
    Limits { capacity, window }
}

struct Shadows {
    mask: u64,
    capacity: u64,
    lru: Table<()>,
    tiny_lfu: Table<()>,
    is_lru: bool,
    accesses: u64,
    window: u64,
    /// Hits of the other policy less hits of the current one.
    lead: i64,
    doubts: u32,
    /// Windows since the last change, or since a doubt went.
    windows: u32,
}

impl Shadows {
    /// For a cache of this capacity that holds so many entries when it is full.
    fn new(capacity: u64, entries: u64, is_lru: bool) -> Self {
        let share = (entries / SHADOW_ENTRIES).max(1);
        // The next power of two, since each one of the sample costs more than the miss itself.
        let share = share.next_power_of_two();
        let entries = (entries / share).clamp(16, SHADOW_ENTRIES * 2);
        Self {
            mask: share - 1,
            capacity: (capacity / share).max(1),
            lru: Table::new().without_frequencies(),
            tiny_lfu: Table::new().with_memory(capacity <= LONG_MEMORY_MAX),
            is_lru,
            accesses: 0,
            window: entries * ACCESSES_PER_ENTRY,
            lead: 0,
            doubts: 0,
            windows: WINDOWS_SOON,
        }
    }

    /// Shows one access; returns whether the policy changes.
    fn access(&mut self, hash: u64, weight: u32) -> bool {
        let lru = hit(&mut self.lru, hash, weight, limits(self.capacity, true));
        let tiny_lfu = hit(
            &mut self.tiny_lfu,
            hash,
            weight,
            limits(self.capacity, false),
        );
        let lead = i64::from(lru) - i64::from(tiny_lfu);
        self.lead += if self.is_lru { -lead } else { lead };
        self.accesses += 1;
        if self.accesses < self.window {
            return false;
        }
        self.accesses = 0;
        self.windows += 1;
        let least = self.window.cast_signed() * LEAD_NUMERATOR / LEAD_DENOMINATOR;
        if self.lead >= least << self.doubts {
            self.is_lru = !self.is_lru;
            self.lead = 0;
            if self.windows <= WINDOWS_SOON {
                self.doubts = (self.doubts + 1).min(DOUBTS_MAX);
            }
            self.windows = 0;
            return true;
        }
        if self.windows >= WINDOWS_CALM {
            self.doubts = self.doubts.saturating_sub(1);
            self.windows = WINDOWS_SOON;
        }
        // All of it but a half, a quarter, an eighth, ...
        self.lead -= self.lead / (2 << self.doubts);
        false
    }
}

impl Payload for () {
    type Line = ();
}

fn hit(table: &mut Table<()>, hash: u64, weight: u32, limits: Limits) -> bool {
    if table.read(hash).is_some() {
        return true;
    }
    if u64::from(weight) <= limits.capacity {
        let at = table.insert(NONE, (hash, weight), (), &mut None).at;
        while table.weight() > limits.capacity && table.evict(limits, at).is_some() {}
    }
    false
}

impl fmt::Debug for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chooser")
            .field("policy", &self.policy())
            .finish_non_exhaustive()
    }
}
