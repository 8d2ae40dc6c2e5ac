//! What the tasks of a node share.

use crate::cache_line::CacheLine;
use crate::{AtomicCounters, AtomicFlags, FlagsSnapshot, Membership, RaftStatus, Snapshot};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

/// The state of a node, shared by its tasks without a lock around the whole.
///
/// What is asked for all the time is read without a lock: [`flags`](Self::flags), [`status`](Self::status),
/// [`members`](Self::members), [`counters`](Self::counters). What is asked for rarely has a lock of its own for
/// each field, held only to copy it in or out. `P` is what the node knows of a peer.
///
/// ```
/// use perf_atomics::{NodeState, Role};
/// use std::sync::Arc;
///
/// let node: Arc<NodeState<String>> = Arc::new(NodeState::new(1));
/// node.members().insert(2, "10.0.0.2:7000".to_owned());
/// node.update_status(|status| (status.role, status.term, status.leader_id) = (Role::Leader, 3, 1));
///
/// assert!(node.is_leader());
/// assert_eq!(node.cluster_size(), 2);
/// assert_eq!(node.status().leader(), Some(1));
/// ```
pub struct NodeState<P> {
    /// Away from the locks below, whose words change while others read the flags.
    flags: CacheLine<AtomicFlags>,
    status: Snapshot<RaftStatus>,
    members: Membership<u64, P>,
    counters: AtomicCounters,
    name: RwLock<Option<String>>,
    address: RwLock<Option<SocketAddr>>,
    labels: RwLock<BTreeMap<String, String>>,
    last_error: RwLock<Option<String>>,
}

impl<P> NodeState<P> {
    /// The state of node `node_id`, a follower in term 0 that knows of no peers.
    #[must_use]
    pub fn new(node_id: u64) -> Self {
        Self {
            flags: CacheLine(AtomicFlags::new()),
            status: Snapshot::new(RaftStatus {
                node_id,
                ..RaftStatus::default()
            }),
            members: Membership::new(),
            counters: AtomicCounters::new(),
            name: RwLock::new(None),
            address: RwLock::new(None),
            labels: RwLock::new(BTreeMap::new()),
            last_error: RwLock::new(None),
        }
    }

    /// The flags. `is_leader` follows the published status; see [`publish_status`](Self::publish_status).
    #[inline]
    #[must_use]
    pub fn flags(&self) -> &AtomicFlags {
        &self.flags.0
    }

    /// All flags at one moment. One load.
    #[inline]
    #[must_use]
    pub fn flags_snapshot(&self) -> FlagsSnapshot {
        self.flags.0.snapshot()
    }

    /// Whether this node leads. One load.
    #[inline]
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.flags.0.is_leader()
    }

    /// The Raft status last published, whole. Lock-free.
    #[inline]
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        self.status.read()
    }

    /// Publishes the Raft status, and then sets the flag `is_leader` by its role.
    ///
    /// Status and flag are two words: a reader of both may for a moment see the new one and the old
    /// other. When all publishers have returned, the flag is that of the last status.
    pub fn publish_status(&self, status: RaftStatus) {
        self.status.publish(status);
        self.let_flag_follow();
    }

    /// Changes the Raft status as one step, publishes it as [`publish_status`](Self::publish_status) does, and
    /// returns it. See [`Snapshot::update`] for `change`.
    pub fn update_status(&self, change: impl FnMut(&mut RaftStatus)) -> RaftStatus {
        let status = self.status.update(change);
        self.let_flag_follow();
        status
    }

    /// Sets the flag by the status, again if another one was published meanwhile: so the publisher
    /// that writes the flag last has seen the last status.
    fn let_flag_follow(&self) {
        loop {
            let (version, status) = self.status.read_versioned();
            // A read-modify-write even if the flag is right already. Publishers are so ordered on the flag: the
            // later one acquires what the earlier one released, a newer version included, and sees it below.
            self.flags.0.set_leader(status.is_leader());
            if self.status.version() == version {
                return;
            }
        }
    }

    /// The other nodes of the cluster, by id.
    #[inline]
    #[must_use]
    pub fn members(&self) -> &Membership<u64, P> {
        &self.members
    }

    /// The nodes of the cluster, this one included. One load.
    #[inline]
    #[must_use]
    pub fn cluster_size(&self) -> usize {
        self.members.len() + 1
    }

    /// The counters.
    #[inline]
    #[must_use]
    pub fn counters(&self) -> &AtomicCounters {
        &self.counters
    }

    /// The node's name, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        self.name.read().clone()
    }

    /// Names the node.
    pub fn set_name(&self, name: impl Into<String>) {
        replace(&self.name, Some(name.into()));
    }

    /// Where the node listens, once it does.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        *self.address.read()
    }

    /// Says where the node listens.
    pub fn set_address(&self, address: SocketAddr) {
        *self.address.write() = Some(address);
    }

    /// The value of a label, such as `zone`.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<String> {
        self.labels.read().get(key).cloned()
    }

    /// All labels.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.labels.read().clone()
    }

    /// Sets a label and returns its earlier value.
    pub fn set_label(&self, key: impl Into<String>, value: impl Into<String>) -> Option<String> {
        let (key, value) = (key.into(), value.into());
        self.labels.write().insert(key, value)
    }

    /// The last error that was [noted](Self::set_last_error).
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.last_error.read().clone()
    }

    /// Records an error, to be shown with the node's status.
    pub fn set_last_error(&self, error: &impl fmt::Display) {
        replace(&self.last_error, Some(error.to_string()));
    }

    /// Forgets the last error.
    pub fn clear_last_error(&self) {
        replace(&self.last_error, None);
    }
}

/// Replaces a cold field; the old value is freed after the lock.
fn replace<T>(field: &RwLock<T>, new: T) {
    let old = std::mem::replace(&mut *field.write(), new);
    drop(old);
}

impl<P: fmt::Debug> fmt::Debug for NodeState<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeState")
            .field("flags", self.flags())
            .field("status", &self.status())
            .field("members", &self.members)
            .field("counters", &self.counters)
            .field("name", &self.name())
            .field("address", &self.address())
            .field("labels", &self.labels())
            .field("last_error", &self.last_error())
            .finish()
    }
}
