//! `node_shared::optimized`: the state that the tasks of a node share. New code uses [`perf_atomics::NodeState`].
//!
//! | name | what differs |
//! |---|---|
//! | `NodeConfig`, `Database`, `PeerInfo` | are parameters: any type; the configuration implements [`NodeConfig`] |
//! | `AtomicRaftStatus` | its fields are not public, and `snapshot` is of one moment |
//! | `RaftStatus` | is [`perf_atomics::RaftStatus`]: `leader()` is an `Option`, `leader_id` is 0 for none |
//! | `cluster_size` | counts the members that were added, as the origin's did. `NodeState::cluster_size` adds this node |
//! | `with_cluster_members` | passes a [`MembershipView`], which has the methods of a `HashMap` |
//!
//! ```
//! use perf_kit::compat::node_shared_optimized::{NodeConfig, OptimizedSharedNodeState};
//!
//! struct Config { id: u64 }
//! impl NodeConfig for Config {
//!     fn node_id(&self) -> u64 { self.id }
//! }
//!
//! let node: OptimizedSharedNodeState<Config, String, String> = OptimizedSharedNodeState::new(Config { id: 1 });
//! node.set_term(3);
//! node.set_leader_id(Some(1));
//! node.set_leader(true);
//! node.add_cluster_member(2, "10.0.0.2:7000".to_owned());
//! assert!(node.is_leader() && node.has_cluster_member(2));
//! assert_eq!((node.term(), node.leader_id(), node.peer_count()), (3, Some(1), 1));
//! assert_eq!(node.get_raft_status().leader(), Some(1));
//! ```

use perf_atomics::{AtomicFlags, Membership, MembershipView, RaftStatus, Role, Snapshot};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// The part of a node's configuration that this module reads.
pub trait NodeConfig {
    /// The node's id.
    fn node_id(&self) -> u64;
}

/// The Raft status of a node, read whole without a lock.
#[derive(Debug)]
pub struct AtomicRaftStatus {
    status: Snapshot<RaftStatus>,
}

impl AtomicRaftStatus {
    fn new(node_id: u64) -> Self {
        let status = RaftStatus {
            node_id,
            ..RaftStatus::default()
        };
        Self {
            status: Snapshot::new(status),
        }
    }

    /// The status at one moment.
    #[must_use]
    pub fn snapshot(&self) -> RaftStatus {
        self.status.read()
    }
}

/// The shared state of a node: a configuration `C`, a database `D`, and a record `P` for each peer.
pub struct OptimizedSharedNodeState<C, D, P> {
    config: C,
    node_id: u64,
    flags: AtomicFlags,
    status: AtomicRaftStatus,
    members: Membership<u64, P>,
    database: RwLock<Option<Arc<D>>>,
}

impl<C: NodeConfig, D, P: Clone> OptimizedSharedNodeState<C, D, P> {
    /// A follower in term 0 without members.
    #[must_use]
    pub fn new(config: C) -> Self {
        let node_id = config.node_id();
        Self {
            config,
            node_id,
            flags: AtomicFlags::new(),
            status: AtomicRaftStatus::new(node_id),
            members: Membership::new(),
            database: RwLock::new(None),
        }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &C {
        &self.config
    }

    /// This node's id.
    #[must_use]
    pub fn node_id(&self) -> u64 {
        self.node_id
    }

    /// Whether the node is ready. One load.
    #[must_use]
    pub fn is_initialized(&self) -> bool {
        self.flags.is_initialized()
    }

    /// Marks the node as ready, or as not ready.
    pub fn set_initialized(&self, initialized: bool) {
        self.flags.set_initialized(initialized);
    }

    /// Whether this node is the leader.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.status.snapshot().is_leader()
    }

    /// Sets this node's role: leader, or follower.
    pub fn set_leader(&self, is_leader: bool) {
        let role = if is_leader {
            Role::Leader
        } else {
            Role::Follower
        };
        self.status.status.update(|status| status.role = role);
    }

    /// The leader's id; `None` if no leader is known.
    #[must_use]
    pub fn leader_id(&self) -> Option<u64> {
        self.status.snapshot().leader()
    }

    /// Sets the leader's id; `None` means that no leader is known.
    pub fn set_leader_id(&self, leader_id: Option<u64>) {
        let leader_id = leader_id.unwrap_or(0);
        self.status
            .status
            .update(|status| status.leader_id = leader_id);
    }

    /// The current term.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.status.snapshot().term
    }

    /// Sets the term.
    pub fn set_term(&self, term: u64) {
        self.status.status.update(|status| status.term = term);
    }

    /// The number of members. One load.
    #[must_use]
    pub fn cluster_size(&self) -> u64 {
        self.members.len() as u64
    }

    /// The database; `None` before one was set.
    #[must_use]
    pub fn database(&self) -> Option<Arc<D>> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.clone()
    }

    /// Replaces the database.
    pub fn set_database(&self, db: Option<Arc<D>>) {
        let old = {
            let mut database = self
                .database
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *database, db)
        };
        // The old database may take long to close: not under the lock.
        drop(old);
    }

    /// A copy of a member's record.
    #[must_use]
    pub fn get_cluster_member(&self, node_id: u64) -> Option<P> {
        self.members.get(&node_id)
    }

    /// Whether a node is a member.
    #[must_use]
    pub fn has_cluster_member(&self, node_id: u64) -> bool {
        self.members.contains(&node_id)
    }

    /// Adds or replaces a member.
    pub fn add_cluster_member(&self, node_id: u64, peer_info: P) {
        self.members.insert(node_id, peer_info);
    }

    /// Removes a member and returns its record.
    pub fn remove_cluster_member(&self, node_id: u64) -> Option<P> {
        self.members.remove(&node_id)
    }

    /// A copy of all members. Linear; [`with_cluster_members`](Self::with_cluster_members) copies nothing.
    #[must_use]
    pub fn cluster_members(&self) -> HashMap<u64, P> {
        let view = self.members.view();
        view.iter().map(|(id, peer)| (*id, peer.clone())).collect()
    }

    /// Runs `f` on the members as they are at one moment. No lock is held meanwhile.
    pub fn with_cluster_members<F, R>(&self, f: F) -> R
    where
        F: FnOnce(&MembershipView<u64, P>) -> R,
    {
        f(&self.members.view())
    }

    /// The Raft status at one moment.
    #[must_use]
    pub fn get_raft_status(&self) -> RaftStatus {
        self.status.snapshot()
    }

    /// Copies of all members' records, in an arbitrary order.
    #[must_use]
    pub fn get_peers(&self) -> Vec<P> {
        self.members.view().values().cloned().collect()
    }

    /// The number of members. One load.
    #[must_use]
    pub fn peer_count(&self) -> usize {
        self.members.len()
    }
}

impl<C, D, P: fmt::Debug> fmt::Debug for OptimizedSharedNodeState<C, D, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OptimizedSharedNodeState")
            .field("node_id", &self.node_id)
            .field("flags", &self.flags)
            .field("status", &self.status)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

/// [`OptimizedSharedNodeState`] with `async` methods where the origin's callers await.
#[derive(Debug)]
pub struct OptimizedNodeStateWrapper<C, D, P> {
    state: OptimizedSharedNodeState<C, D, P>,
}

impl<C: NodeConfig, D, P: Clone> OptimizedNodeStateWrapper<C, D, P> {
    /// A follower in term 0 without members.
    #[must_use]
    pub fn new(config: C) -> Self {
        Self {
            state: OptimizedSharedNodeState::new(config),
        }
    }

    /// The wrapped state.
    #[must_use]
    pub fn optimized(&self) -> &OptimizedSharedNodeState<C, D, P> {
        &self.state
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &C {
        self.state.config()
    }

    /// This node's id.
    #[must_use]
    pub fn node_id(&self) -> u64 {
        self.state.node_id()
    }

    /// Whether the node is ready.
    #[must_use]
    pub fn is_initialized(&self) -> bool {
        self.state.is_initialized()
    }

    /// Marks the node as ready, or as not ready.
    pub fn set_initialized(&self, initialized: bool) {
        self.state.set_initialized(initialized);
    }

    /// The database; `None` before one was set. Never waits.
    pub async fn database(&self) -> Option<Arc<D>> {
        self.state.database()
    }

    /// Replaces the database. Never waits.
    pub async fn set_database(&self, db: Option<Arc<D>>) {
        self.state.set_database(db);
    }

    /// Whether this node is the leader.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.state.is_leader()
    }

    /// Sets this node's role: leader, or follower.
    pub fn set_leader(&self, is_leader: bool) {
        self.state.set_leader(is_leader);
    }

    /// The leader's id; `None` if no leader is known.
    #[must_use]
    pub fn leader_id(&self) -> Option<u64> {
        self.state.leader_id()
    }

    /// Sets the leader's id; `None` means that no leader is known.
    pub fn set_leader_id(&self, leader_id: Option<u64>) {
        self.state.set_leader_id(leader_id);
    }

    /// A copy of all members.
    #[must_use]
    pub fn cluster_members(&self) -> HashMap<u64, P> {
        self.state.cluster_members()
    }

    /// Adds or replaces a member.
    pub fn add_cluster_member(&self, node_id: u64, peer_info: P) {
        self.state.add_cluster_member(node_id, peer_info);
    }

    /// Removes a member.
    pub fn remove_cluster_member(&self, node_id: u64) {
        self.state.remove_cluster_member(node_id);
    }

    /// A copy of a member's record.
    #[must_use]
    pub fn get_cluster_member(&self, node_id: u64) -> Option<P> {
        self.state.get_cluster_member(node_id)
    }
}
