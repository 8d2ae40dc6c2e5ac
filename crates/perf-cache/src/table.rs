//! One shard's entries: an open-addressed index of slots, and the queues that say which entry goes next. No locks, and no code of the user.

use crate::index::Index;
use crate::queues::{Limits, NONE, Payload, Queues, Slot};

/// A new tick of the policy after so many births per entry held: a sixteenth of the capacity is how exactly the order of reads is
/// known to the policy. See `docs/design/perf-cache.md`.
const TICKS_PER_TURNOVER: u64 = 16;
/// Slots grow by an eighth, so that at most as much lies idle.
const GROWTH: usize = 8;

/// Entries by hash. Memory: a slot per entry, 6 to 13 bytes of the index and 8 to 16 of the sketch.
/// In this order: what each read asks for comes first, in the line of the lock.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Table<P: Payload> {
    index: Index,
    slots: Vec<Slot<P>>,
    tick: u8,
    /// The first free slot.
    free: u32,
    births: u64,
    queues: Queues,
}

/// What an insertion did.
#[derive(Debug)]
pub(crate) struct Inserted {
    /// The slot.
    pub(crate) at: u32,
    /// The weight of the entry that had the hash.
    pub(crate) replaced: u32,
    /// Whether a tick has begun.
    pub(crate) is_tick: bool,
}

impl<P: Payload> Table<P> {
    pub(crate) fn new() -> Self {
        Self {
            index: Index::new(),
            slots: Vec::new(),
            free: NONE,
            tick: 0,
            queues: Queues::new(),
            births: 0,
        }
    }

    /// For limits whose window is all there is.
    pub(crate) fn without_frequencies(mut self) -> Self {
        self.queues.without_frequencies();
        self
    }

    /// With a longer memory of frequencies, if `is_long`. See [`Chooser::table`](crate::policy::Chooser::table).
    pub(crate) fn with_memory(mut self, is_long: bool) -> Self {
        if is_long {
            self.queues.remember_long();
        }
        self
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    pub(crate) fn weight(&self) -> u64 {
        self.queues.weight()
    }

    #[inline]
    fn slot(&self, hash: u64) -> Option<&Slot<P>> {
        let slots = &*self.slots;
        let is_it = |at: u32| slots.get(at as usize).is_some_and(|slot| slot.hash == hash);
        slots.get(self.index.find(hash, is_it)? as usize)
    }

    /// The entry of a hash, without a word to the policy.
    #[inline]
    pub(crate) fn peek(&self, hash: u64) -> Option<&P> {
        self.slot(hash)?.payload.as_ref()
    }

    /// The entry of a hash, read; with its weight if this is its first read of a tick.
    #[inline]
    pub(crate) fn read(&self, hash: u64) -> Option<(&P, Option<u32>)> {
        let slot = self.slot(hash)?;
        let weight = slot.mark(self.tick).then_some(slot.weight);
        Some((slot.payload.as_ref()?, weight))
    }

    /// The slot of a hash, or [`NONE`].
    #[inline]
    pub(crate) fn find(&self, hash: u64) -> u32 {
        let slots = &self.slots;
        let is_it = |at: u32| slots.get(at as usize).is_some_and(|slot| slot.hash == hash);
        let found = self.index.find(hash, is_it);
        found.unwrap_or(NONE)
    }

    /// The entry in a slot.
    pub(crate) fn at(&self, at: u32) -> Option<&P> {
        self.slots.get(at as usize)?.payload.as_ref()
    }

    /// Puts an entry in. `at` is what [`find`](Self::find) says of its hash; the entry that is there goes to
    /// `replaced`.
    #[inline]
    pub(crate) fn insert(
        &mut self,
        at: u32,
        (hash, weight): (u64, u32),
        payload: P,
        replaced: &mut Option<P>,
    ) -> Inserted {
        if at != NONE {
            let slot = &mut self.slots[at as usize];
            let old_weight = slot.weight;
            slot.mark(self.tick);
            *replaced = slot.payload.replace(payload);
            self.queues.replace(&mut self.slots, at, weight);
            return Inserted {
                at,
                replaced: old_weight,
                is_tick: false,
            };
        }
        let slot = Slot::new(hash, weight, payload, self.tick);
        let at = if self.free == NONE {
            if self.slots.len() == self.slots.capacity() {
                self.slots.reserve_exact(self.slots.len() / GROWTH + 1);
            }
            self.slots.push(slot);
            self.queues.grow(self.slots.len());
            (self.slots.len() - 1) as u32
        } else {
            let at = self.free;
            self.free = self.slots[at as usize].next;
            self.slots[at as usize] = slot;
            at
        };
        self.queues.insert(&mut self.slots, at);
        let slots = &self.slots;
        let others = || {
            let held = (0..).zip(slots).filter(|(_, slot)| slot.payload.is_some());
            held.filter(|(other, _)| *other != at)
                .map(|(other, slot)| (slot.hash, other))
        };
        self.index.insert(hash, at, others);
        self.births += 1;
        let is_tick = self.births * TICKS_PER_TURNOVER > self.index.len() as u64;
        if is_tick {
            self.births = 0;
            self.tick = self.tick.wrapping_add(1);
        }
        Inserted {
            at,
            replaced: 0,
            is_tick,
        }
    }

    /// Takes the entry of a hash out if it `matches`; with its weight.
    pub(crate) fn remove(
        &mut self,
        hash: u64,
        matches: impl FnOnce(&P) -> bool,
    ) -> Option<(u32, P)> {
        let at = self.find(hash);
        let slot = self.slots.get(at as usize)?;
        if !slot.payload.as_ref().is_some_and(matches) {
            return None;
        }
        self.vacate(at)
    }

    fn vacate(&mut self, at: u32) -> Option<(u32, P)> {
        let hash = self.slots[at as usize].hash;
        self.index.remove(hash, at);
        self.queues.remove(&mut self.slots, at);
        let slot = &mut self.slots[at as usize];
        slot.next = self.free;
        self.free = at;
        Some((slot.weight, slot.payload.take()?))
    }

    /// Throws one entry out, with its hash and weight, but not the one in the slot `kept`; `None` if there is no other.
    pub(crate) fn evict(&mut self, limits: Limits, kept: u32) -> Option<(u64, u32, P)> {
        let at = self.queues.victim(&mut self.slots, limits, kept)?;
        let hash = self.slots[at as usize].hash;
        let (weight, payload) = self.vacate(at)?;
        Some((hash, weight, payload))
    }

    /// How many slots there are, free ones included.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The entries of `count` slots from one on, with their hashes. An entry stays in its slot.
    pub(crate) fn page(&self, from: usize, count: usize) -> impl Iterator<Item = (u64, &P)> {
        let slots = self.slots.iter().skip(from).take(count);
        slots.filter_map(|slot| Some((slot.hash, slot.payload.as_ref()?)))
    }

    /// The hashes of all entries, with their weights.
    pub(crate) fn weights(&self) -> impl Iterator<Item = (u64, u32)> {
        let held = self.slots.iter().filter(|slot| slot.payload.is_some());
        held.map(|slot| (slot.hash, slot.weight))
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

    impl Payload for u64 {
        type Line = Self;
    }

    /// Random steps beside a plain map: what is held, its weight, and that the newest entry is never the one to go.
    #[test]
    fn a_table_holds_what_a_map_holds_less_what_it_threw_out() {
        for (seed, capacity, window) in
            [(1_u64, 1_u64, 1_u64), (2, 50, 1), (3, 50, 50), (4, 400, 40)]
        {
            let limits = Limits { capacity, window };
            let mut below = crate::random::below(seed);
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
                        matches.then(|| map.remove(&hash)).flatten()
                    }),
                    _ => {
                        let weight = 1 + below(capacity.min(9)) as u32;
                        let mut old = None;
                        let at = table.find(hash);
                        assert_eq!(table.at(at), table.peek(hash));
                        let inserted = table.insert(at, (hash, weight), step, &mut old);
                        let old = old.map(|old| (inserted.replaced, old));
                        assert_eq!(old, map.insert(hash, (weight, step)));
                        while table.weight() > capacity {
                            let gone = table.evict(limits, inserted.at);
                            let (_, _, gone) = gone.expect("another one can go");
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
            let pages = (0..table.slots()).step_by(7);
            let entries = pages.flat_map(|from| table.page(from, 7));
            let mut held: Vec<u64> = entries.map(|(_, held)| *held).collect();
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
