//! Which policy suits the load: a sample of the keys is run through both.

use crate::policy::{Capacity, Kind, Tokens, tokens};

/// How many entries a shadow holds, about. Some hundreds tell hit ratios apart to a point or two; more cost more.
const SHADOW_ENTRIES: u64 = 512;
/// A window has so many accesses per entry of a shadow.
const ACCESSES_PER_ENTRY: u64 = 1;
/// The other policy must lead by this share of a window's accesses, over the decaying sum of windows.
const LEAD_NUMERATOR: i64 = 3;
const LEAD_DENOMINATOR: i64 = 100;

pub(crate) struct Shadow {
    /// One hash in `sample_mask + 1` is shown.
    sample_mask: u64,
    lru: Tokens,
    tiny_lfu: Tokens,
    current: Kind,
    accesses: u64,
    window: u64,
    /// Hits of the other policy less hits of the current one.
    lead: i64,
}

impl Shadow {
    /// For a cache of this capacity that holds so many entries when it is full.
    pub(crate) fn new(capacity: Capacity, entries: u64, current: Kind) -> Self {
        let share = (entries / SHADOW_ENTRIES).max(1);
        // Rounded down to a power of two, so that a shadow has at least the entries above.
        let share = 1 << share.ilog2();
        let capacity = Capacity {
            units: (capacity.units / share).max(1),
            ..capacity
        };
        let entries = (entries / share).clamp(16, SHADOW_ENTRIES * 2);
        Self {
            sample_mask: share - 1,
            lru: tokens(Kind::Lru, capacity, None),
            tiny_lfu: tokens(Kind::TinyLfu, capacity, None),
            current,
            accesses: 0,
            window: entries * ACCESSES_PER_ENTRY,
            lead: 0,
        }
    }

    /// Shows one access; says which policy to change to, if it is time.
    pub(crate) fn access(&mut self, hash: u64, weight: u32) -> Option<Kind> {
        if (hash >> 32) & self.sample_mask != 0 {
            return None;
        }
        let lru = hit(&self.lru, hash, weight);
        let tiny_lfu = hit(&self.tiny_lfu, hash, weight);
        let ours = |kind| if kind == Kind::Lru { lru } else { tiny_lfu };
        self.lead += i64::from(ours(self.current.other())) - i64::from(ours(self.current));
        self.accesses += 1;
        if self.accesses < self.window {
            return None;
        }
        self.accesses = 0;
        let least = self.window.cast_signed() * LEAD_NUMERATOR / LEAD_DENOMINATOR;
        if self.lead >= least {
            self.current = self.current.other();
            self.lead = 0;
            return Some(self.current);
        }
        self.lead /= 2;
        None
    }
}

fn hit(tokens: &Tokens, hash: u64, weight: u32) -> bool {
    let is_hit = tokens.get(&hash).is_some();
    if !is_hit {
        tokens.insert(hash, weight);
    }
    is_hit
}
