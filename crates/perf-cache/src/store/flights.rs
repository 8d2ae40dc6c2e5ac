//! The computations under way in one shard.
//!
//! A computation that begins is noted under its hash. Who asks for the hash meanwhile waits by its flight, which the
//! first of them brings. An insertion or invalidation of the hash makes the computation *outdated*: its result is for
//! those who wait for it already, and not for the table; who asks from then on computes anew.

use crate::flight::Flight;
use crate::primitive::mutant;
use hashbrown::HashTable;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct UnderWay<K, V> {
    hash: u64,
    /// Tells it from others of its hash.
    number: u64,
    /// It refreshes a stale value in the background: a caller without a stale value to return does not wait for it.
    pub(super) is_refresh: bool,
    is_outdated: bool,
    /// Whether the table had no entry of the hash when it began.
    pub(super) was_absent: bool,
    /// `None` while nobody waits for it.
    pub(super) flight: Option<Arc<Flight<K, V>>>,
}

impl<K, V> UnderWay<K, V> {
    fn is_current(&self, hash: u64) -> bool {
        self.hash == hash && !self.is_outdated
    }

    /// Whether anything is left of it when it becomes outdated.
    fn outdate(&mut self) -> bool {
        self.is_outdated = true;
        self.flight.is_some() && !mutant::is("outdated_flight_forgotten")
    }
}

#[derive(Debug)]
pub(super) struct Flights<K, V> {
    /// Most often there is one at most.
    first: Option<UnderWay<K, V>>,
    /// Made when there are several for the first time.
    more: Option<Box<HashTable<UnderWay<K, V>>>>,
    number: u64,
}

impl<K, V> Flights<K, V> {
    pub(super) const fn new() -> Self {
        Self {
            first: None,
            more: None,
            number: 0,
        }
    }

    /// The computation of a hash that is not outdated. There is one at most.
    #[inline]
    pub(super) fn current(&mut self, hash: u64) -> Option<&mut UnderWay<K, V>> {
        match &mut self.first {
            Some(first) if first.is_current(hash) => Some(first),
            _ => {
                let more = self.more.as_mut()?;
                more.find_mut(hash, |held| held.is_current(hash))
            }
        }
    }

    /// Whether there is one.
    pub(super) fn is_computed(&self, hash: u64) -> bool {
        let is_it = |held: &UnderWay<K, V>| held.is_current(hash);
        let is_in = |more: &HashTable<_>| more.find(hash, is_it).is_some();
        self.first.as_ref().is_some_and(is_it) || self.more.as_deref().is_some_and(is_in)
    }

    /// Notes a computation of a hash that has none; returns its number.
    pub(super) fn begin(&mut self, hash: u64, is_refresh: bool, was_absent: bool) -> u64 {
        self.number += 1;
        let new = UnderWay {
            hash,
            number: self.number,
            is_refresh,
            is_outdated: false,
            was_absent,
            flight: None,
        };
        if self.first.is_none() {
            self.first = Some(new);
        } else {
            let more = self.more.get_or_insert_default();
            more.insert_unique(hash, new, |held| held.hash);
        }
        self.number
    }

    /// Makes the computation of a hash outdated, if there is one. One that nobody waits for is forgotten.
    #[inline]
    pub(super) fn outdate(&mut self, hash: u64) {
        match &mut self.first {
            Some(first) if first.is_current(hash) => {
                if !first.outdate() {
                    self.first = None;
                }
            }
            _ => {
                if let Some(more) = &mut self.more
                    && let Ok(mut found) = more.find_entry(hash, |held| held.is_current(hash))
                    && !found.get_mut().outdate()
                {
                    found.remove();
                }
            }
        }
    }

    /// Makes all computations outdated.
    pub(super) fn outdate_all(&mut self) {
        if !self.first.as_mut().is_some_and(UnderWay::outdate) {
            self.first = None;
        }
        if let Some(more) = &mut self.more {
            more.retain(UnderWay::outdate);
        }
    }

    /// Takes out the computation of a hash and number that has ended; `None` if it was forgotten. The second part says
    /// whether its result may go into the table.
    #[inline]
    pub(super) fn end(&mut self, hash: u64, number: u64) -> Option<(UnderWay<K, V>, bool)> {
        let is_it = |held: &UnderWay<K, V>| held.hash == hash && held.number == number;
        let ended = if self.first.as_ref().is_some_and(is_it) {
            self.first.take()?
        } else {
            let found = self.more.as_mut()?.find_entry(hash, is_it);
            found.ok()?.remove().0
        };
        let is_current = !ended.is_outdated;
        Some((ended, is_current))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random steps beside a plain list.
    #[test]
    fn flights_are_what_a_list_says() {
        struct Held {
            hash: u64,
            number: u64,
            is_outdated: bool,
            flight: Option<Arc<Flight<(), ()>>>,
        }
        let mut below = crate::random::below(1);
        let mut flights = Flights::<(), ()>::new();
        let mut list: Vec<Held> = Vec::new();
        let mut most = 0;
        for _ in 0..50_000 {
            let hash = below(4);
            let at = list
                .iter()
                .position(|held| held.hash == hash && !held.is_outdated);
            assert_eq!(flights.current(hash).is_some(), at.is_some());
            assert_eq!(flights.is_computed(hash), at.is_some());
            match (below(8), at) {
                (0, _) if below(10) == 0 => {
                    flights.outdate_all();
                    list.retain_mut(|held| {
                        held.is_outdated = true;
                        held.flight.is_some()
                    });
                }
                (0 | 1, _) => {
                    flights.outdate(hash);
                    if let Some(at) = at {
                        list[at].is_outdated = true;
                        list.retain(|held| !held.is_outdated || held.flight.is_some());
                    }
                }
                (2 | 3, _) if !list.is_empty() => {
                    let held = list.swap_remove(below(list.len() as u64) as usize);
                    let (ended, is_current) = flights.end(held.hash, held.number).unwrap();
                    assert_eq!(is_current, !held.is_outdated);
                    assert_eq!(ended.flight.is_some(), held.flight.is_some());
                    let same = ended.flight.iter().zip(&held.flight);
                    same.for_each(|(ended, held)| assert!(Arc::ptr_eq(ended, held)));
                    assert!(flights.end(held.hash, held.number).is_none());
                }
                (4 | 5, Some(at)) => {
                    let flight = Arc::new(Flight::new());
                    list[at].flight.get_or_insert(Arc::clone(&flight));
                    let under_way = flights.current(hash).unwrap();
                    under_way.flight.get_or_insert(flight);
                }
                (_, None) => list.push(Held {
                    hash,
                    number: flights.begin(hash, false, true),
                    is_outdated: false,
                    flight: None,
                }),
                _ => {}
            }
            most = most.max(list.len());
        }
        assert!(most > 6, "several at once, outdated ones among them");
    }
}
