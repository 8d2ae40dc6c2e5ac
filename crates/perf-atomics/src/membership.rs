//! A map that is read all the time and changed rarely.

use crate::cache_line::CacheLine;
use crate::member_map::MemberMap;
use crate::primitive::{AtomicU64, Ordering, Swap, mutant};
use crate::turn::{Attempts, Turn};
use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::ops::Deref;
use std::sync::Arc;

/// The default hasher: fast, seeded per map. A map whose keys an attacker chooses should have
/// `std::hash::RandomState` instead.
pub type DefaultHasher = foldhash::fast::RandomState;

/// A read-mostly map, such as the peers of a node.
///
/// Readers take no lock. A change copies a part of the map, of about the square root of its length, and is published as a whole with the next
/// generation. Replaced parts are freed when their last reader lets go of them.
///
/// | | cost |
/// |---|---|
/// | [`len`](Self::len), [`generation`](Self::generation) | one load |
/// | [`MembershipReader::get`] | one load and a look-up, no write to shared memory |
/// | [`contains`](Self::contains), [`get`](Self::get) | a guard on the current map and a look-up |
/// | [`insert`](Self::insert), [`remove`](Self::remove) | a copy of about `2 sqrt(len)` members and `sqrt(len)` references |
/// | [`update`](Self::update) | the same for each part of the map that it changes |
///
/// When a change returns, every later read on any thread that learned of the return sees it, through all
/// of these methods.
///
/// ```
/// use perf_atomics::Membership;
///
/// let peers: Membership<u64, &str> = Membership::new();
/// peers.insert(1, "10.0.0.1:7000");
/// peers.insert(2, "10.0.0.2:7000");
///
/// let mut reader = peers.reader(); // one per task or thread
/// assert_eq!(reader.get(&2), Some(&"10.0.0.2:7000"));
///
/// peers.remove(&2);
/// assert_eq!(reader.get(&2), None);
/// assert_eq!((peers.len(), peers.generation()), (1, 3));
/// ```
pub struct Membership<K, V, S = DefaultHasher> {
    current: Swap<MembershipView<K, V, S>>,
    /// Generation and length of a published view, see [`pack`].
    stamp: CacheLine<AtomicU64>,
    turn: Turn,
}

/// The members at one moment.
#[derive(Clone)]
pub struct MembershipView<K, V, S = DefaultHasher> {
    generation: u64,
    members: MemberMap<K, V, S>,
}

impl<K, V, S> MembershipView<K, V, S> {
    /// How many changes led to this view.
    #[inline]
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

impl<K, V, S> Deref for MembershipView<K, V, S> {
    type Target = MemberMap<K, V, S>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.members
    }
}

impl<K: fmt::Debug, V: fmt::Debug, S> fmt::Debug for MembershipView<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MembershipView")
            .field("generation", &self.generation)
            .field("members", &self.members)
            .finish()
    }
}

/// The low bits of a stamp hold the length, the high bits the generation, so that the newest stamp
/// is the largest one. 44 bits of generation last for two and a half years of changes that follow each other by 5 us.
const LEN_BITS: u32 = 20;
/// This length stands for itself and every greater one.
const LEN_MAX: u64 = (1 << LEN_BITS) - 1;

fn pack(generation: u64, len: usize) -> u64 {
    generation << LEN_BITS | (len as u64).min(LEN_MAX)
}

impl<K, V, S: Default> Membership<K, V, S> {
    /// No members, generation 0.
    #[must_use]
    pub fn new() -> Self {
        Self::of(MemberMap::default())
    }

    /// The members of `map`, such as a `HashMap`, generation 0. Of equal keys the last one counts.
    #[must_use]
    pub fn from_map(map: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Clone + Eq + Hash,
        V: Clone,
        S: BuildHasher + Clone,
    {
        Self::of(map.into_iter().collect())
    }
}

impl<K, V, S> Membership<K, V, S> {
    fn of(members: MemberMap<K, V, S>) -> Self {
        let stamp = pack(0, members.len());
        Self {
            current: Swap::new(Arc::new(MembershipView {
                generation: 0,
                members,
            })),
            stamp: CacheLine(AtomicU64::new(stamp)),
            turn: Turn::default(),
        }
    }

    /// How many members there are (the size of the cluster, where this holds all its nodes).
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        let len = self.stamp.0.load(Ordering::Acquire) & LEN_MAX;
        if len < LEN_MAX {
            len as usize
        } else {
            self.current.with(|view| view.len())
        }
    }

    /// Whether there are no members.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many changes were made so far. What was computed from a view is out of date when this differs
    /// from the view's own.
    #[inline]
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.stamp.0.load(Ordering::Acquire) >> LEN_BITS
    }

    /// The members now, as a whole that does not change while it is held.
    #[must_use]
    pub fn view(&self) -> Arc<MembershipView<K, V, S>> {
        self.current.load_full()
    }

    /// A reader that remembers the last view it saw: the fastest way to look members up.
    #[must_use]
    pub fn reader(&self) -> MembershipReader<&Self, K, V, S> {
        MembershipReader::new(self)
    }
}

impl<K: Eq + Hash, V, S: BuildHasher> Membership<K, V, S> {
    /// Whether `key` is a member.
    #[inline]
    #[must_use]
    pub fn contains<Q: ?Sized + Eq + Hash>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.current.with(|view| view.contains_key(key))
    }

    /// A copy of what is stored for `key`.
    #[inline]
    #[must_use]
    pub fn get<Q: ?Sized + Eq + Hash>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        V: Clone,
    {
        self.current.with(|view| view.members.get(key).cloned())
    }
}

impl<K: Clone + Eq + Hash, V: Clone, S: Clone + BuildHasher> Membership<K, V, S> {
    /// Adds or replaces a member and returns what was stored for it.
    pub fn insert(&self, key: K, value: V) -> Option<V> {
        self.update(|members| members.insert(key.clone(), value.clone()))
    }

    /// Takes a member away and returns what was stored for it. Without such a member nothing changes,
    /// not even the generation.
    pub fn remove<Q: ?Sized + Eq + Hash>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.try_update(|members| members.remove(key))
    }

    /// Changes the members as one step, and returns what `change` returned.
    ///
    /// `change` works on a copy and may panic: nothing changes then. It runs again, on a newer copy, if another change came in
    /// between. After eight such losses the changes of other threads wait for this one, up to 0.1 s each, so a change
    /// that takes less than that ends however many others there are.
    ///
    /// `change` may read this membership itself. If it changed it at each run, it would lose to itself for ever.
    pub fn update<R>(&self, mut change: impl FnMut(&mut MemberMap<K, V, S>) -> R) -> R {
        let mut attempts = Attempts::new(&self.turn);
        loop {
            attempts.next();
            let current = self.current.load_full();
            let mut members = current.members.clone();
            let result = change(&mut members);
            if self.publish(&current, members) {
                return result;
            }
        }
    }

    /// [`update`](Self::update) that publishes nothing if `change` returns `None`.
    pub fn try_update<R>(
        &self,
        mut change: impl FnMut(&mut MemberMap<K, V, S>) -> Option<R>,
    ) -> Option<R> {
        let mut attempts = Attempts::new(&self.turn);
        loop {
            attempts.next();
            let current = self.current.load_full();
            let mut members = current.members.clone();
            let result = change(&mut members)?;
            if self.publish(&current, members) {
                return Some(result);
            }
        }
    }

    /// Puts `members` in the place of `current`, unless it is no longer the current view.
    fn publish(&self, current: &Arc<MembershipView<K, V, S>>, members: MemberMap<K, V, S>) -> bool {
        let generation = current.generation + 1;
        let stamp = pack(generation, members.len());
        if !self.current.replace(
            current,
            Arc::new(MembershipView {
                generation,
                members,
            }),
        ) {
            return false;
        }
        // Between the swap above and here another writer may publish a later stamp, which must stay: hence
        // the maximum. Release: whoever sees the stamp finds this view or a later one.
        if mutant::is("membership_stamp_by_store") {
            self.stamp.0.store(stamp, Ordering::Release);
        } else {
            self.stamp.0.fetch_max(stamp, Ordering::AcqRel);
        }
        true
    }
}

impl<K, V, S: Default> Default for Membership<K, V, S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: fmt::Debug, V: fmt::Debug, S> fmt::Debug for Membership<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.current.with(|view| {
            f.debug_struct("Membership")
                .field("generation", &view.generation)
                .field("members", &view.members)
                .finish()
        })
    }
}

/// Looks members up in the last view it saw, after one load that tells whether it still is the current one.
///
/// It keeps that view alive: an idle reader pins at most one outdated map. `M` is how it
/// reaches the membership: a reference, or an `Arc` for a task of its own.
///
/// ```
/// use perf_atomics::{Membership, MembershipReader};
/// use std::sync::Arc;
///
/// let peers: Arc<Membership<u64, String>> = Arc::default();
/// let mut reader = MembershipReader::new(Arc::clone(&peers));
/// let task = std::thread::spawn(move || reader.get(&1).cloned());
/// assert_eq!(task.join().unwrap(), None);
/// ```
pub struct MembershipReader<M, K, V, S = DefaultHasher> {
    membership: M,
    view: Arc<MembershipView<K, V, S>>,
    /// The stamp of `view`.
    stamp: u64,
}

impl<M, K, V, S> MembershipReader<M, K, V, S>
where
    M: Deref<Target = Membership<K, V, S>>,
{
    /// A reader of `membership`.
    #[must_use]
    pub fn new(membership: M) -> Self {
        let view = membership.view();
        let stamp = pack(view.generation, view.len());
        Self {
            membership,
            view,
            stamp,
        }
    }

    /// The current members.
    #[inline]
    pub fn view(&mut self) -> &MembershipView<K, V, S> {
        // Ours may be the later one: the membership's stamp follows its view a moment later.
        if self.membership.stamp.0.load(Ordering::Acquire) > self.stamp {
            self.refresh();
        }
        &self.view
    }

    #[cold]
    fn refresh(&mut self) {
        self.view = self.membership.view();
        self.stamp = pack(self.view.generation, self.view.len());
    }

    /// What is stored for `key`.
    #[inline]
    pub fn get<Q: ?Sized + Eq + Hash>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q> + Eq + Hash,
        S: BuildHasher,
    {
        self.view().members.get(key)
    }

    /// Whether `key` is a member.
    #[inline]
    pub fn contains<Q: ?Sized + Eq + Hash>(&mut self, key: &Q) -> bool
    where
        K: Borrow<Q> + Eq + Hash,
        S: BuildHasher,
    {
        self.get(key).is_some()
    }
}

impl<M: Clone, K, V, S> Clone for MembershipReader<M, K, V, S> {
    fn clone(&self) -> Self {
        Self {
            membership: self.membership.clone(),
            view: Arc::clone(&self.view),
            stamp: self.stamp,
        }
    }
}

impl<M, K: fmt::Debug, V: fmt::Debug, S> fmt::Debug for MembershipReader<M, K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MembershipReader")
            .field("view", &self.view)
            .finish_non_exhaustive()
    }
}
