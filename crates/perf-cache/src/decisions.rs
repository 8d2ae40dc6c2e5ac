//! Placements that were decided already.

use crate::cache::TtlCache;
use crate::error::CacheError;
use crate::placement::{Requirements, Strategy};
use crate::stats::CacheStats;
use perf_atomics::Membership;
use std::future::Future;
use std::time::Duration;

/// What a decision holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Question {
    requirements: Requirements,
    strategy: Strategy,
    generation: u64,
}

/// Where VMs go, decided once per requirements, strategy and generation of the membership.
///
/// When the cluster changes, its generation does, and every decision is made anew; those of before go with their TTL. A cached decision may point to
/// a node that has filled up since: reserve there first, and [`forget`](Self::forget) the decision when that fails.
///
/// ```
/// use perf_atomics::Membership;
/// use perf_cache::{NodeCapacity, PlacementDecisionCache, PlacementIndex, Requirements, Strategy};
/// use std::time::Duration;
///
/// let members: Membership<u64, String> = Membership::new();
/// let mut index = PlacementIndex::new();
/// members.insert(7, "10.0.0.7:7000".to_owned());
/// index.update(NodeCapacity { id: 7, vcpus: 8, memory_mib: 16_384, disk_gib: 100 })?;
///
/// let decisions = PlacementDecisionCache::new(1000, Duration::from_secs(5))?;
/// let vm = Requirements::new(2, 2048, 10);
/// let strategy = Strategy::MostAvailable;
/// let node = decisions.place(&vm, strategy, &members, || index.select(&vm, strategy));
/// assert_eq!(node, Some(7));
/// # Ok::<(), perf_cache::CacheError>(())
/// ```
#[derive(Clone, Debug)]
pub struct PlacementDecisionCache {
    cache: TtlCache<Question, Option<u64>>,
}

impl PlacementDecisionCache {
    /// Keeps `capacity` decisions for `ttl` each.
    ///
    /// # Errors
    /// [`CacheError`] if one of them is zero.
    pub fn new(capacity: u64, ttl: Duration) -> Result<Self, CacheError> {
        let cache = TtlCache::builder(capacity).ttl(ttl).build()?;
        Ok(Self { cache })
    }

    /// The node for a VM, or that there is none; decided by `decide` if it is not known for the membership as it is now.
    pub fn place<K, V, S>(
        &self,
        requirements: &Requirements,
        strategy: Strategy,
        members: &Membership<K, V, S>,
        decide: impl FnOnce() -> Option<u64>,
    ) -> Option<u64> {
        self.place_at(requirements, strategy, members.generation(), decide)
    }

    /// The same for a generation that is known already. Read it before what `decide` looks at.
    pub fn place_at(
        &self,
        requirements: &Requirements,
        strategy: Strategy,
        generation: u64,
        decide: impl FnOnce() -> Option<u64>,
    ) -> Option<u64> {
        let question = Question {
            requirements: *requirements,
            strategy,
            generation,
        };
        self.cache.get_or_compute(&question, decide)
    }

    /// [`place`](Self::place) for a task: `decide` may wait, for a report of the nodes, say. See
    /// [`get_or_compute_async`](TtlCache::get_or_compute_async).
    pub async fn place_async<K, V, S, F>(
        &self,
        requirements: &Requirements,
        strategy: Strategy,
        members: &Membership<K, V, S>,
        decide: impl FnOnce() -> F,
    ) -> Option<u64>
    where
        F: Future<Output = Option<u64>>,
    {
        let question = Question {
            requirements: *requirements,
            strategy,
            generation: members.generation(),
        };
        self.cache.get_or_compute_async(&question, decide).await
    }

    /// Forgets a decision, for the generation it was made at.
    pub fn forget(&self, requirements: &Requirements, strategy: Strategy, generation: u64) -> bool {
        self.cache.invalidate(&Question {
            requirements: *requirements,
            strategy,
            generation,
        })
    }

    /// Forgets every decision for a node, and returns how many.
    pub fn forget_node(&self, node: u64) -> usize {
        self.cache
            .invalidate_where(|_, decided| *decided == Some(node))
    }

    /// Forgets every decision.
    pub fn clear(&self) {
        self.cache.clear();
    }

    /// What was done so far: `hits` are the decisions that were saved.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.cache.stats()
    }
}

impl crate::manager::Managed for PlacementDecisionCache {
    fn cleanup_expired(&self) -> usize {
        self.cache.cleanup_expired()
    }

    fn clear(&self) {
        self.cache.clear();
    }

    fn stats(&self) -> CacheStats {
        self.cache.stats()
    }

    fn watch(&self) -> crate::manager::Watched {
        crate::manager::Managed::watch(&self.cache)
    }
}
