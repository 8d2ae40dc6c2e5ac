//! Where the values are: a table split in shards, each behind a lock of its own, and a version per shard.
//!
//! Tables are keyed by the hash alone, so nothing that happens under a lock calls code of the user: keys are compared
//! and values cloned and dropped outside. Two keys of one 64-bit hash take turns in the one place. Small values of known types lie in the
//! table (`in_place.rs`) and are copied under the lock; all others are behind an `Arc`, whose count is what is taken out.
//!
//! A thread-local cache (`front.rs`) keeps an entry with the version it read *before* it fetched the entry. A thread that takes an entry
//! out of a table raises the version before it returns; so a front whose version is still the current one holds what the table holds, or
//! what it held at a moment after the reader's last look. Release on the bump and acquire on the read make the rest of what the
//! invalidating thread did visible too.

mod flights;
mod shards;
mod version;

use crate::entry::{Entry, Stored};
use crate::flight::Flight;
use crate::in_place::InPlace;
use crate::policy::Chooser;
use crate::removal::{Listener, Removal};
pub(crate) use shards::{Shards, shard_index};
use std::sync::Arc;
pub(crate) use version::{Version, Versions};

/// Which caller computes, after a miss.
pub(crate) enum Joined<K, V> {
    /// The caller, under this number. What the table holds by now comes with it: a computation may have ended
    /// meanwhile.
    Lead(u64, Option<Arc<Entry<K, V>>>),
    /// Another caller; with the flight if others wait for it already.
    Under(Option<Arc<Flight<K, V>>>),
}

/// All shards of a cache. Chosen when the cache is built.
#[derive(Debug)]
pub(crate) enum Store<K, V> {
    /// Entries lie in the slots of the tables.
    InPlace(Shards<K, V, InPlace<K, V>>),
    /// Slots refer to entries.
    Pinned(Shards<K, V, Arc<Entry<K, V>>>),
}

/// The same expression for either kind of shards.
macro_rules! either {
    ($store:expr, $shards:ident => $body:expr) => {
        match $store {
            $crate::store::Store::InPlace($shards) => $body,
            $crate::store::Store::Pinned($shards) => $body,
        }
    };
}
pub(crate) use either;

impl<K, V> Store<K, V> {
    pub(crate) fn new(
        capacity: u64,
        is_weighed: bool,
        chooser: Chooser,
        listener: Option<Listener<K, V>>,
        in_place: bool,
    ) -> Self {
        if in_place {
            Self::InPlace(Shards::new(capacity, is_weighed, chooser, listener))
        } else {
            Self::Pinned(Shards::new(capacity, is_weighed, chooser, listener))
        }
    }

    /// Beside the shards, so that a front can keep them at hand.
    pub(crate) fn versions(&self) -> &Arc<Versions> {
        either!(self, shards => &shards.versions)
    }

    pub(crate) fn chooser(&self) -> &Chooser {
        either!(self, shards => &shards.chooser)
    }

    #[inline]
    pub(crate) fn version(&self, hash: u64) -> &Version {
        either!(self, shards => shards.version(hash))
    }

    pub(crate) fn capacity(&self) -> u64 {
        either!(self, shards => shards.capacity())
    }

    pub(crate) fn len(&self) -> u64 {
        either!(self, shards => shards.len())
    }

    pub(crate) fn weight(&self) -> u64 {
        either!(self, shards => shards.weight())
    }

    pub(crate) fn evictions(&self) -> u64 {
        either!(self, shards => shards.evictions())
    }

    /// Whether a computation of a hash is under way.
    pub(crate) fn is_computed(&self, hash: u64) -> bool {
        either!(self, shards => shards.is_computed(hash))
    }

    /// A flight to wait by for the computation of a hash: `new`, or the one there is. `None` if it has ended.
    pub(crate) fn follow(&self, hash: u64, new: Arc<Flight<K, V>>) -> Option<Arc<Flight<K, V>>> {
        either!(self, shards => shards.follow(hash, new))
    }

    /// Ends a computation that leaves the table as it is. Returns the flight of those who wait for it, to be settled.
    pub(crate) fn end(&self, hash: u64, number: u64) -> Option<Arc<Flight<K, V>>> {
        either!(self, shards => shards.end(hash, number))
    }
}

impl<K: 'static, V: 'static> Store<K, V> {
    /// The entry of a hash, read; with the version under which a front may keep it.
    #[inline]
    pub(crate) fn read(
        &self,
        hash: u64,
        spare: Option<Arc<Entry<K, V>>>,
    ) -> (u64, Option<Arc<Entry<K, V>>>) {
        either!(self, shards => {
            let (version, held) = shards.read_versioned(hash);
            (version, held.map(|held| held.into_entry(hash, spare)))
        })
    }

    /// Puts an entry in. A computation of its hash that is under way becomes outdated.
    pub(crate) fn put(&self, entry: Entry<K, V>) {
        either!(self, shards => shards.put(entry));
    }

    /// Ends a computation with an entry, which goes in if `is_kept`, unless the computation is outdated.
    pub(crate) fn land(&self, number: u64, entry: Entry<K, V>, is_kept: bool) {
        either!(self, shards => shards.land(number, entry, is_kept));
    }

    /// Takes out whatever a hash has, for a value that cannot be kept in its place; its computation becomes outdated.
    pub(crate) fn take(&self, hash: u64) {
        either!(self, shards => {
            let taken = shards.take(hash, |_| true);
            shards.tell(taken, Removal::Replaced);
        });
    }

    /// Takes out an entry that has ended: a computation goes on.
    pub(crate) fn take_ended(&self, entry: &Arc<Entry<K, V>>) {
        either!(self, shards => shards.drop_ended(entry.hash, |held| held.is_of(entry)));
    }

    /// Notes a computation of a hash, or finds the one under way.
    pub(crate) fn join(&self, hash: u64, is_refresh: bool) -> Joined<K, V> {
        either!(self, shards => shards.join(hash, is_refresh))
    }
}
