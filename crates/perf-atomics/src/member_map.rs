//! A hash map whose copies share what they have in common.
//!
//! Linear hashing (Litwin, VLDB 1980): the number of buckets grows by one at a time, each time by splitting the next bucket in order. So there is no
//! moment at which the whole map is moved. Buckets are shared between copies until one of them changes. A change copies the list
//! of buckets and one or two buckets; with about as many buckets as members in a bucket, that is the square root of the map.

use hashbrown::HashTable;
use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

/// A map with fewer members than this has no buckets.
const BUCKET_LEN_MIN: usize = 16;

/// A map like `HashMap`, cheap to copy and to change after a copy.
///
/// | | cost |
/// |---|---|
/// | [`get`](Self::get), [`contains_key`](Self::contains_key) | those of a `HashMap`; from 16 members on three loads more |
/// | [`clone`](Clone::clone) | a reference count for each of about `sqrt(len)` buckets |
/// | [`insert`](Self::insert), [`remove`](Self::remove) | after a copy, copies of two buckets of about `sqrt(len)` members at most |
/// | [`iter`](Self::iter), [`retain`](Self::retain) | linear |
///
/// The order of members is arbitrary.
#[derive(Clone)]
pub struct MemberMap<K, V, S> {
    /// The members of a small map, as long as there are no buckets.
    small: Table<K, V>,
    /// Never a single one.
    buckets: Vec<Arc<Table<K, V>>>,
    /// The least power of two that is not below the number of buckets, minus one.
    mask: usize,
    len: usize,
    hasher: S,
}

/// Not a `HashMap`: a key is hashed once, for its bucket and for its place in it.
type Table<K, V> = HashTable<(K, V)>;

/// The bits of a hash that choose a bucket: not the lowest ones, which choose a place in it. A hash that does not spread there makes one bucket of
/// all, which changes no answer and makes changes linear.
#[inline]
fn bucket_bits(hash: u64) -> usize {
    (hash >> 32) as usize
}

/// As many buckets as members in each; none for a small map.
fn buckets_for(len: usize) -> usize {
    if len < BUCKET_LEN_MIN { 0 } else { len.isqrt() }
}

impl<K, V, S: Default> Default for MemberMap<K, V, S> {
    fn default() -> Self {
        Self::with_hasher(S::default())
    }
}

impl<K, V, S> MemberMap<K, V, S> {
    /// An empty map.
    pub fn with_hasher(hasher: S) -> Self {
        Self {
            small: HashTable::new(),
            buckets: Vec::new(),
            mask: 0,
            len: 0,
            hasher,
        }
    }

    /// How many members there are.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes all members away.
    pub fn clear(&mut self) {
        self.small.clear();
        self.buckets.clear();
        (self.mask, self.len) = (0, 0);
    }

    /// All members, in an arbitrary order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let buckets = self.buckets.iter().flat_map(|bucket| bucket.iter());
        let members = self.small.iter().chain(buckets);
        members.map(|(key, value)| (key, value))
    }

    /// All keys, in an arbitrary order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values, in an arbitrary order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Eq + Hash, V, S: BuildHasher> MemberMap<K, V, S> {
    /// The bucket of a key with this hash, where there are any.
    #[inline]
    fn place(&self, hash: u64) -> usize {
        let place = bucket_bits(hash) & self.mask;
        // Buckets beyond the last one have not been split off yet.
        if place < self.buckets.len() {
            place
        } else {
            place & (self.mask >> 1)
        }
    }

    /// What is stored for `key`.
    #[inline]
    pub fn get<Q: ?Sized + Eq + Hash>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let hash = self.hasher.hash_one(key);
        let table = if self.buckets.is_empty() {
            &self.small
        } else {
            &**self.buckets.get(self.place(hash))?
        };
        let member = table.find(hash, |(stored, _)| stored.borrow() == key);
        member.map(|(_, value)| value)
    }

    /// Whether `key` is a member.
    #[inline]
    pub fn contains_key<Q: ?Sized + Eq + Hash>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }
}

impl<K: Clone + Eq + Hash, V: Clone, S: BuildHasher + Clone> MemberMap<K, V, S> {
    /// The table of a key with this hash, for this map alone.
    fn table_mut(&mut self, hash: u64) -> &mut Table<K, V> {
        if self.buckets.is_empty() {
            return &mut self.small;
        }
        let place = self.place(hash);
        Arc::make_mut(&mut self.buckets[place])
    }

    /// What is stored for `key`, to be changed.
    pub fn get_mut<Q: ?Sized + Eq + Hash>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        if !self.contains_key(key) {
            return None;
        }
        let hash = self.hasher.hash_one(key);
        let member = self
            .table_mut(hash)
            .find_mut(hash, |(stored, _)| stored.borrow() == key);
        member.map(|(_, value)| value)
    }

    /// Adds or replaces a member and returns what was stored for it.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        if let Some(stored) = self.get_mut(&key) {
            return Some(std::mem::replace(stored, value));
        }
        if self.buckets.len() < buckets_for(self.len + 1) {
            self.split_next();
        }
        self.len += 1;
        let hash = self.hasher.hash_one(&key);
        let hasher = self.hasher.clone();
        // It is new: looked up above.
        self.table_mut(hash)
            .insert_unique(hash, (key, value), |(key, _)| hasher.hash_one(key));
        None
    }

    /// Takes a member away and returns what was stored for it.
    pub fn remove<Q: ?Sized + Eq + Hash>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        if !self.contains_key(key) {
            return None;
        }
        let hash = self.hasher.hash_one(key);
        let member = self
            .table_mut(hash)
            .find_entry(hash, |(stored, _)| stored.borrow() == key);
        let value = member.ok().map(|member| member.remove().0.1);
        self.len -= 1;
        // Not at the same length at which it grows: a map that changes back and forth there would split and merge each time.
        if self.buckets.len() > 2 * buckets_for(2 * self.len) {
            self.merge_last();
        }
        value
    }

    /// Keeps the members of which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        let mut gone: Vec<K> = Vec::new();
        let buckets = self.buckets.iter_mut().map(Arc::make_mut);
        for table in std::iter::once(&mut self.small).chain(buckets) {
            for (key, value) in table.iter_mut() {
                if !keep(&*key, value) {
                    gone.push(key.clone());
                }
            }
        }
        for key in gone {
            self.remove(&key);
        }
    }

    /// One more bucket, with the members of an earlier one that belong there.
    fn split_next(&mut self) {
        if self.buckets.is_empty() {
            self.buckets.push(Arc::new(std::mem::take(&mut self.small)));
        }
        let new = self.buckets.len();
        if new > self.mask {
            self.mask = 2 * self.mask + 1;
        }
        let source = new & (self.mask >> 1);
        let (mut stay, mut go) = (HashTable::new(), HashTable::new());
        let hash_of = |(key, _): &(K, V)| self.hasher.hash_one(key);
        for member in self.buckets[source].iter() {
            let hash = hash_of(member);
            let half = if bucket_bits(hash) & self.mask == new {
                &mut go
            } else {
                &mut stay
            };
            half.insert_unique(hash, member.clone(), hash_of);
        }
        self.buckets[source] = Arc::new(stay);
        self.buckets.push(Arc::new(go));
    }

    /// One bucket less: the last one's members go back to where they were split off.
    fn merge_last(&mut self) {
        let Some(last) = self.buckets.len().checked_sub(1) else {
            return;
        };
        let target = last & (self.mask >> 1);
        // A new table, so that a key or value that panics when it is hashed or cloned leaves the map as it was.
        let mut table = HashTable::clone(&self.buckets[target]);
        let hash_of = |(key, _): &(K, V)| self.hasher.hash_one(key);
        for member in self.buckets[last].iter() {
            // No other bucket has its key.
            table.insert_unique(hash_of(member), member.clone(), hash_of);
        }
        self.buckets.truncate(last);
        if last.is_power_of_two() {
            self.mask >>= 1;
        }
        if last == 1 {
            self.small = table;
            self.buckets.clear();
        } else {
            self.buckets[target] = Arc::new(table);
        }
    }
}

impl<K: Clone + Eq + Hash, V: Clone, S: BuildHasher + Clone> Extend<(K, V)> for MemberMap<K, V, S> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, members: I) {
        for (key, value) in members {
            self.insert(key, value);
        }
    }
}

impl<K: Clone + Eq + Hash, V: Clone, S: BuildHasher + Clone + Default> FromIterator<(K, V)>
    for MemberMap<K, V, S>
{
    fn from_iter<I: IntoIterator<Item = (K, V)>>(members: I) -> Self {
        let mut map = Self::default();
        map.extend(members);
        map
    }
}

impl<K: fmt::Debug, V: fmt::Debug, S> fmt::Debug for MemberMap<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(all(test, not(perf_loom)))]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::hash::{BuildHasherDefault, DefaultHasher, Hasher};

    type Map<S> = MemberMap<u64, u64, S>;

    /// A hash that is none.
    #[derive(Default)]
    struct Identity(u64);

    impl Hasher for Identity {
        fn finish(&self) -> u64 {
            self.0
        }

        fn write(&mut self, bytes: &[u8]) {
            self.0 = bytes
                .first_chunk()
                .map_or(0, |bytes| u64::from_le_bytes(*bytes));
        }
    }

    /// All members in one bucket, whatever is split.
    #[derive(Default)]
    struct Same;

    impl Hasher for Same {
        fn finish(&self) -> u64 {
            7
        }

        fn write(&mut self, _: &[u8]) {}
    }

    fn agrees<S: BuildHasher + Clone + Default>(keys: u64, steps: u64) {
        let (mut map, mut model) = (Map::<S>::default(), HashMap::new());
        let mut copies = Vec::new();
        for step in 0..steps {
            let key = step.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 20;
            // It grows at first and shrinks then.
            let key = key % keys;
            if key % 8 < 2 + 5 * u64::from(step < steps / 2) {
                assert_eq!(map.insert(key, step), model.insert(key, step));
            } else {
                assert_eq!(map.remove(&key), model.remove(&key));
            }
            assert_eq!(map.len(), model.len());
            if step % (steps / 4) == 0 {
                copies.push((map.clone(), model.clone()));
            }
        }
        copies.push((map, model));
        for (map, model) in copies {
            let mut members: Vec<_> = map.iter().map(|(key, value)| (*key, *value)).collect();
            let mut expected: Vec<_> = model.into_iter().collect();
            members.sort_unstable();
            expected.sort_unstable();
            assert_eq!(members, expected, "a copy does not change");
            for (key, value) in expected {
                assert_eq!(map.get(&key), Some(&value));
            }
        }
    }

    #[test]
    fn it_is_a_map_with_any_hash() {
        agrees::<BuildHasherDefault<DefaultHasher>>(3000, 20_000);
        agrees::<BuildHasherDefault<Identity>>(3000, 20_000);
        agrees::<BuildHasherDefault<Same>>(100, 1000);
    }

    #[test]
    fn a_copy_shares_all_buckets_but_those_that_change() {
        let mut map: Map<BuildHasherDefault<DefaultHasher>> =
            (0..10_000).map(|key| (key, key)).collect();
        let before = map.clone();
        map.insert(3, 4);
        map.insert(10_000, 0);
        let shared = before.buckets.iter().zip(&map.buckets);
        let own = shared
            .filter(|(one, other)| !Arc::ptr_eq(one, other))
            .count();
        assert!((1..=3).contains(&own), "{own}");
        assert!(
            (90..=110).contains(&map.buckets.len()),
            "{}",
            map.buckets.len()
        );
        let longest = map.buckets.iter().map(|bucket| bucket.len()).max();
        assert!(longest < Some(500), "{longest:?}");
        map.retain(|key, value| {
            *value += 1;
            key % 2 == 0
        });
        assert_eq!(
            (map.len(), map.get(&2), before.get(&2)),
            (5001, Some(&3), Some(&2))
        );
    }

    /// A value whose `clone` panics when it is told to.
    #[derive(Debug, Default, PartialEq)]
    struct Fragile(u64);

    thread_local! {
        static CLONES_LEFT: std::cell::Cell<u64> = const { std::cell::Cell::new(u64::MAX) };
    }

    impl Clone for Fragile {
        fn clone(&self) -> Self {
            let left = CLONES_LEFT.get();
            assert!(left > 0, "planned");
            CLONES_LEFT.set(left - 1);
            Self(self.0)
        }
    }

    #[test]
    fn a_value_whose_clone_panics_takes_no_other_along() {
        type Map = MemberMap<u64, Fragile, BuildHasherDefault<DefaultHasher>>;
        let full: Map = (0..500).map(|key| (key, Fragile(key))).collect();
        for clones in 0..200 {
            let mut map = full.clone();
            CLONES_LEFT.set(clones);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for key in 0..400 {
                    map.remove(&key);
                }
            }));
            CLONES_LEFT.set(u64::MAX);
            assert!(outcome.is_err(), "after {clones} clones");
            assert_eq!(map.len(), map.iter().count(), "after {clones} clones");
            for key in 400..500 {
                assert_eq!(map.get(&key), Some(&Fragile(key)));
            }
        }
    }

    #[test]
    fn a_map_that_shrinks_has_few_buckets() {
        let mut map: Map<BuildHasherDefault<DefaultHasher>> =
            (0..10_000).map(|key| (key, key)).collect();
        for key in 0..9_990 {
            map.remove(&key);
        }
        assert!(map.buckets.len() <= 8, "{}", map.buckets.len());
        assert_eq!(map.len(), 10);
        for key in 9_990..10_000 {
            assert_eq!(map.remove(&key), Some(key));
        }
        assert!(map.is_empty() && map.buckets.is_empty());
        assert_eq!(map.insert(1, 1), None);
    }
}
