//! One shard's entries: an open-addressed index of slots, and the queues that say which entry goes next. No locks, and no code of the user.

use crate::queues::{Limits, NONE, Queues, Slot};
use hashbrown::HashTable;

/// A new tick of the policy after so many births per entry held: a sixteenth of the capacity is how exactly the order of reads is
/// known to the policy. See `docs/design/perf-cache.md`.
const TICKS_PER_TURNOVER: u64 = 16;
/// Slots grow by an eighth, so that at most as much lies idle.
const GROWTH: usize = 8;

/// Entries by hash. Memory: a slot per entry, some 10 bytes of the index and 8 of the sketch.
#[derive(Debug)]
pub(crate) struct Table<P> {
    index: HashTable<u32>,
    slots: Vec<Slot<P>>,
    /// The first free slot.
    free: u32,
    tick: u8,
    queues: Queues,
    births: u64,
}

impl<P> Table<P> {
    pub(crate) const fn new() -> Self {
        Self {
            index: HashTable::new(),
            slots: Vec::new(),
            free: NONE,
            tick: 0,
            queues: Queues::new(),
            births: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    pub(crate) fn weight(&self) -> u64 {
        self.queues.weight()
    }

    #[inline]
    fn slot(&self, hash: u64) -> Option<&Slot<P>> {
        let at = self
            .index
            .find(hash, |at| self.slots[*at as usize].hash == hash)?;
        Some(&self.slots[*at as usize])
    }

    /// The entry of a hash, without a word to the policy.
    #[inline]
    pub(crate) fn peek(&self, hash: u64) -> Option<&P> {
        self.slot(hash)?.payload.as_ref()
    }

    /// The entry of a hash, read; and whether this is its first read of a tick.
    #[inline]
    pub(crate) fn read(&self, hash: u64) -> Option<(&P, bool)> {
        let slot = self.slot(hash)?;
        let is_first = slot.mark(self.tick);
        Some((slot.payload.as_ref()?, is_first))
    }

    /// Puts an entry in. Returns the one that had the hash, and whether a tick has begun.
    pub(crate) fn insert(&mut self, hash: u64, weight: u32, payload: P) -> (Option<P>, bool) {
        let slots = &self.slots;
        let found = self.index.find(hash, |at| slots[*at as usize].hash == hash);
        if let Some(at) = found.copied() {
            self.queues.replace(&mut self.slots, at, weight);
            let slot = &mut self.slots[at as usize];
            slot.mark(self.tick);
            return (slot.payload.replace(payload), false);
        }
        let slot = Slot::new(hash, weight, payload, self.tick);
        let at = if self.free == NONE {
            if self.slots.len() == self.slots.capacity() {
                self.slots.reserve_exact(self.slots.len() / GROWTH + 1);
            }
            self.slots.push(slot);
            (self.slots.len() - 1) as u32
        } else {
            let at = self.free;
            self.free = self.slots[at as usize].next;
            self.slots[at as usize] = slot;
            at
        };
        self.queues.insert(&mut self.slots, at);
        let slots = &self.slots;
        self.index
            .insert_unique(hash, at, |at| slots[*at as usize].hash);
        self.births += 1;
        let is_tick = self.births * TICKS_PER_TURNOVER > self.index.len() as u64;
        if is_tick {
            self.births = 0;
            self.tick = self.tick.wrapping_add(1);
        }
        (None, is_tick)
    }

    /// Takes the entry of a hash out if it `matches`.
    pub(crate) fn remove(&mut self, hash: u64, matches: impl FnOnce(&P) -> bool) -> Option<P> {
        let slots = &self.slots;
        let found = self
            .index
            .find_entry(hash, |at| slots[*at as usize].hash == hash);
        let entry = found.ok()?;
        let at = *entry.get();
        if !self.slots[at as usize]
            .payload
            .as_ref()
            .is_some_and(matches)
        {
            return None;
        }
        entry.remove();
        self.vacate(at)
    }

    fn vacate(&mut self, at: u32) -> Option<P> {
        self.queues.remove(&mut self.slots, at);
        let slot = &mut self.slots[at as usize];
        slot.next = self.free;
        self.free = at;
        slot.payload.take()
    }

    /// Throws one entry out, but not the one of `kept`; `None` if there is no other.
    pub(crate) fn evict(&mut self, limits: Limits, kept: u64) -> Option<P> {
        let slots = &self.slots;
        let kept = self.index.find(kept, |at| slots[*at as usize].hash == kept);
        let kept = kept.copied().unwrap_or(NONE);
        let at = self.queues.victim(&mut self.slots, limits, kept)?;
        let hash = self.slots[at as usize].hash;
        if let Ok(entry) = self.index.find_entry(hash, |held| *held == at) {
            entry.remove();
        }
        self.vacate(at)
    }

    /// All entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &P> {
        self.slots.iter().filter_map(|slot| slot.payload.as_ref())
    }

    /// All entries, taken out.
    pub(crate) fn into_entries(self) -> impl Iterator<Item = P> {
        self.slots.into_iter().filter_map(|slot| slot.payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Random steps beside a plain map: what is held, its weight, and that the newest entry is never the one to go.
    #[test]
    fn a_table_holds_what_a_map_holds_less_what_it_threw_out() {
        for (seed, capacity, window) in
            [(1_u64, 1_u64, 1_u64), (2, 50, 1), (3, 50, 50), (4, 400, 40)]
        {
            let limits = Limits { capacity, window };
            let mut random = seed;
            let mut below = |bound: u64| {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (random >> 33) % bound
            };
            let mut table = Table::new();
            let mut map: HashMap<u64, (u32, u64)> = HashMap::new();
            for step in 0..20_000_u64 {
                // All in the highest bits, so that hashes share places of the index.
                let hash = below(300) << 50;
                match below(4) {
                    0 => assert_eq!(
                        table.read(hash).map(|(value, _)| *value),
                        map.get(&hash).map(|held| held.1)
                    ),
                    1 => assert_eq!(table.remove(hash, |value| *value % 2 == 0), {
                        let matches = map.get(&hash).is_some_and(|held| held.1 % 2 == 0);
                        matches
                            .then(|| map.remove(&hash))
                            .flatten()
                            .map(|held| held.1)
                    }),
                    _ => {
                        let weight = 1 + below(capacity.min(9)) as u32;
                        let (old, _) = table.insert(hash, weight, step);
                        assert_eq!(old, map.insert(hash, (weight, step)).map(|held| held.1));
                        while table.weight() > capacity {
                            let gone = table.evict(limits, hash).expect("another one can go");
                            assert_ne!(gone, step, "the newest entry went");
                            let before = map.len();
                            map.retain(|_, held| held.1 != gone);
                            assert_eq!(map.len(), before - 1);
                        }
                    }
                }
                assert_eq!(table.len(), map.len());
                let weight: u64 = map.values().map(|held| u64::from(held.0)).sum();
                assert_eq!(table.weight(), weight);
            }
            let mut held: Vec<u64> = table.iter().copied().collect();
            let mut expected: Vec<u64> = map.values().map(|held| held.1).collect();
            held.sort_unstable();
            expected.sort_unstable();
            assert_eq!(held, expected);
            assert!(
                table.slots.len() as u64 <= capacity + 1,
                "slots are used again"
            );
        }
    }
}
