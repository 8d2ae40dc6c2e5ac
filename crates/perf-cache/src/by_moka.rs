//! Moka's W-TinyLFU in the place of the crate's own queues, for [`Policy::Moka`](crate::Policy::Moka).
//!
//! A cache of moka's holds the hashes and weights of all entries. It is told of each insertion and removal, and once
//! per tick of an entry that was read; what it throws out goes out of the shards. The shards' own queues stay, and keep
//! the capacity where moka's view is behind, since other threads are inserting just now.

use crate::hash::PassBuild;
use crate::policy::Policy;
use moka::notification::RemovalCause;
use moka::sync::Cache;
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;

type Weights = Cache<u64, u32, PassBuild>;

pub(crate) struct ByMoka {
    /// Another one after each change of the capacity, which moka's caches keep for life.
    weights: RwLock<Weights>,
    /// Hashes that moka has thrown out.
    victims: Arc<Mutex<Vec<u64>>>,
}

impl ByMoka {
    /// Of a cache with that policy.
    pub(crate) fn new(policy: Policy, capacity: u64) -> Option<Self> {
        let victims = Arc::default();
        (policy == Policy::Moka).then(|| Self {
            weights: RwLock::new(weights(capacity, &victims)),
            victims,
        })
    }

    /// Notes an insertion, and the miss before it: moka counts how often keys are asked for.
    pub(crate) fn insert(&self, hash: u64, weight: u32) {
        let weights = self.weights.read();
        weights.get(&hash);
        weights.insert(hash, weight);
    }

    pub(crate) fn read(&self, hash: u64) {
        self.weights.read().get(&hash);
    }

    /// Notes that an entry is gone.
    pub(crate) fn forget(&self, hash: u64) {
        self.weights.read().invalidate(&hash);
    }

    /// The hashes that have to go. If the cache is over its capacity, moka is made to decide now.
    pub(crate) fn victims(&self, is_over: bool) -> Vec<u64> {
        if is_over {
            self.weights.read().run_pending_tasks();
        }
        std::mem::take(&mut *self.victims.lock())
    }

    /// Starts over with another capacity: without entries, and without frequencies.
    pub(crate) fn reset(&self, capacity: u64) {
        let new = weights(capacity, &self.victims);
        let old = std::mem::replace(&mut *self.weights.write(), new);
        drop(old);
    }
}

fn weights(capacity: u64, victims: &Arc<Mutex<Vec<u64>>>) -> Weights {
    let victims = Arc::clone(victims);
    Cache::builder()
        .max_capacity(capacity)
        .weigher(|_, weight| *weight)
        .eviction_listener(move |hash, _, cause| {
            if cause == RemovalCause::Size {
                victims.lock().push(*hash);
            }
        })
        .build_with_hasher(PassBuild::default())
}
