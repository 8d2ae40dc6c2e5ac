//! Puts a node together.

use super::apply_pool::ApplyPool;
use super::drive::Attached;
use super::handle::RaftHandle;
use super::inbox::Inbox;
use super::log_thread::LogThread;
use super::open::{Log, NewGroup, Place, check_address, open};
use super::snapshot_io::SnapshotTraffic;
use super::task::TaskHandle;
use crate::GroupId;
use crate::error::StartError;
use crate::log::LogStore;
use crate::memory::EntryMemory;
use crate::options::{ApplyMode, RaftOptions};
use crate::state_machine::Machine;
use crate::transport::Transport;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// A node of a Raft group. See [`builder`](Self::builder).
#[derive(Debug)]
pub struct RaftNode;

impl RaftNode {
    /// Begins a node with an id that is unique in its group, not 0.
    ///
    /// ```
    /// # use bytes::Bytes;
    /// # use perf_raft::{Command, StateMachine, StateMachineError};
    /// # struct Log(Vec<Bytes>);
    /// # impl StateMachine for Log {
    /// #     fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
    /// #         responses.extend(batch.iter().map(|command| command.data.clone()));
    /// #     }
    /// #     fn snapshot(&mut self) -> Result<Bytes, StateMachineError> { Ok(Bytes::new()) }
    /// #     fn restore(&mut self, _: Bytes) -> Result<(), StateMachineError> { Ok(()) }
    /// # }
    /// use perf_raft::{ChannelNetwork, GroupId, MemoryLog, RaftNode};
    ///
    /// # tokio::runtime::Builder::new_multi_thread().enable_time().build()?.block_on(async {
    /// let network = ChannelNetwork::new();
    /// let node = RaftNode::builder(1)
    ///     .group(GroupId(7))
    ///     .log_store(MemoryLog::new())
    ///     .transport(network.transport(1))
    ///     .state_machine(Log(Vec::new()))
    ///     .bootstrap([1])
    ///     .start()
    ///     .await?;
    /// while !node.status().is_leader() {
    ///     tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    /// }
    /// assert_eq!(node.propose(Bytes::from_static(b"hello")).await?, "hello");
    /// node.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn builder(id: u64) -> RaftNodeBuilder {
        RaftNodeBuilder {
            id,
            group: GroupId(1),
            options: RaftOptions::default(),
            log: None,
            transport: None,
            machine: None,
            voters: Vec::new(),
            address: String::new(),
            seed: None,
            entry_memory: None,
            #[cfg(feature = "metrics")]
            metrics: None,
        }
    }
}

/// A node that is being put together.
#[must_use = "a builder does nothing until `start`"]
pub struct RaftNodeBuilder {
    id: u64,
    group: GroupId,
    options: RaftOptions,
    log: Option<Box<dyn LogStore>>,
    transport: Option<Arc<dyn Transport>>,
    machine: Option<Machine>,
    voters: Vec<u64>,
    address: String,
    seed: Option<u64>,
    entry_memory: Option<EntryMemory>,
    #[cfg(feature = "metrics")]
    metrics: Option<crate::metrics::Recorder>,
}

impl std::fmt::Debug for RaftNodeBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftNodeBuilder")
            .field("id", &self.id)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

impl RaftNodeBuilder {
    /// The group; 1 if none is given.
    pub fn group(mut self, group: GroupId) -> Self {
        self.group = group;
        self
    }

    /// Where the log is kept. Needed.
    pub fn log_store(mut self, log: impl LogStore) -> Self {
        self.log = Some(Box::new(log));
        self
    }

    /// How messages get to peers. Needed.
    pub fn transport(mut self, transport: impl Transport) -> Self {
        self.transport = Some(Arc::new(transport));
        self
    }

    /// What is replicated: a [`StateMachine`](crate::StateMachine), or a [`Machine::streamed`]. Needed.
    pub fn state_machine(mut self, machine: impl Into<Machine>) -> Self {
        self.machine = Some(machine.into());
        self
    }

    /// Bounds and periods.
    pub fn options(mut self, options: RaftOptions) -> Self {
        self.options = options;
        self
    }

    /// The first members of a new group. Give it on each of them alike, and on none that joins later. Without effect
    /// once the log holds anything, so it may stay in the code.
    ///
    /// The one with the lowest id asks for votes with its first tick, so a group whose members start together has a leader some 50 ms later and not after an election
    /// timeout. Without it, or if the others start much later, they elect as always.
    pub fn bootstrap(mut self, voters: impl IntoIterator<Item = u64>) -> Self {
        self.voters = voters.into_iter().collect();
        self
    }

    /// Where peers reach this node, 260 bytes at most. It is replicated: every member sees it in [`RaftHandle::membership`]. A node that starts at another
    /// address says so by itself. Nothing here connects to it: that is the [`transport`](Self::transport)'s.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = address.into();
        self
    }

    /// Where election timeouts come from; random by default. Nothing else does, so nodes may share it.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// The bound on the memory of log entries that this node shares with others. Without it that of the process, 64 MiB:
    /// [`EntryMemory::of_process`].
    pub fn entry_memory(mut self, memory: &EntryMemory) -> Self {
        self.entry_memory = Some(memory.clone());
        self
    }

    /// Records the node's figures with these instruments at each tick.
    #[cfg(feature = "metrics")]
    pub fn metrics(mut self, metrics: Arc<crate::RaftMetrics>) -> Self {
        self.metrics = Some(crate::metrics::Recorder::new(metrics));
        self
    }

    /// Reads the log, restores the state machine and starts the node's tasks on the present runtime.
    ///
    /// # Errors
    /// [`StartError`]: something is missing or out of range, or the log is not sound.
    pub async fn start(self) -> Result<RaftHandle, StartError> {
        let missing = |what| StartError::Missing { what };
        let Self {
            id, group, options, ..
        } = self;
        options.check()?;
        check_address(&self.address)?;
        let store = self.log.ok_or_else(|| missing("log_store"))?;
        let transport = self.transport.ok_or_else(|| missing("transport"))?;
        let machine = self.machine.ok_or_else(|| missing("state_machine"))?;
        let log = if store.is_volatile() {
            Log::Inline(store)
        } else {
            Log::Thread(Arc::new(LogThread::start(store, false, id)?))
        };
        let place = Place {
            id,
            address: self.address,
            log,
            appliers: match options.apply {
                ApplyMode::Inline => None,
                ApplyMode::Thread => Some(Arc::new(ApplyPool::start(1, id)?)),
            },
            entry_memory: self.entry_memory.unwrap_or_else(EntryMemory::of_process),
            snapshot_traffic: Arc::new(SnapshotTraffic::new(&options)),
            runtime: Handle::current(),
            start: Instant::now(),
            sleepers: None,
        };
        let new = NewGroup {
            group,
            options,
            machine,
            voters: self.voters,
            seed: self.seed,
            #[cfg(feature = "metrics")]
            metrics: self.metrics,
        };
        let thread = match &place.log {
            Log::Thread(thread) => Some(Arc::clone(thread)),
            Log::Inline(_) => None,
        };
        let task = TaskHandle::start(None);
        let opened = open(place, new, &task, transport.frame_bytes_max(), |shared| {
            let started = transport.start(Inbox::of_group(shared));
            started.map_err(|error| StartError::Transport(error.to_string()))?;
            Ok(Arc::new(Attached(transport)))
        });
        let opened = opened.await;
        // It ends with the node.
        task.close();
        if opened.is_err()
            && let Some(thread) = thread
        {
            // The files are free again when this returns.
            thread.close().await;
        }
        opened
    }
}
