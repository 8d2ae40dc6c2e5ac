//! Puts a node together.

use super::apply::{Applier, ApplyThread};
use super::drive::{ApplySide, Driver, LogSide, Published, Scratch};
use super::fetcher::Fetcher;
use super::handle::RaftHandle;
use super::inbox::Inbox;
use super::log_thread::LogThread;
use super::mailbox::Mailbox;
use super::shared::NodeShared;
use super::stats::{RaftStats, StageStats};
use super::task;
use crate::GroupId;
use crate::codec::{ENTRY_ROOM_BYTES, payload_len_max};
use crate::core::{ADDRESS_BYTES_MAX, Core, CoreConfig, Start, open_log};
use crate::error::{StartError, panic_message};
use crate::log::{LogError, LogReader, LogStore};
use crate::members::Identity;
use crate::memory::EntryMemory;
use crate::options::{ApplyMode, RaftOptions};
use crate::primitive::threads;
use crate::state_machine::StateMachine;
use crate::transport::Transport;
use parking_lot::Mutex;
use perf_atomics::Snapshot;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

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
    machine: Option<Box<dyn StateMachine>>,
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

    /// What is replicated. Needed.
    pub fn state_machine(mut self, machine: impl StateMachine) -> Self {
        self.machine = Some(Box::new(machine));
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
            id,
            group,
            options,
            voters,
            ..
        } = self;
        options.check()?;
        if self.address.len() > ADDRESS_BYTES_MAX {
            return Err(StartError::Options {
                option: "address",
                reason: format!(
                    "it has {} bytes, at most {ADDRESS_BYTES_MAX} are allowed",
                    self.address.len()
                ),
            });
        }
        let mut log = self.log.ok_or_else(|| missing("log_store"))?;
        let transport = self.transport.ok_or_else(|| missing("transport"))?;
        let machine = self.machine.ok_or_else(|| missing("state_machine"))?;
        let seed = self
            .seed
            .unwrap_or_else(|| RandomState::new().hash_one((id, group)));
        let mut applier = Applier::new(machine);
        // Reading a long log takes a while; other tasks of this thread shall not wait for it.
        let identity = Identity {
            node: id,
            incarnation: random_number(),
        };
        let loaded = threads::spawn_blocking(move || {
            let loaded = load(log.as_mut(), group, identity, &voters, &mut applier);
            loaded.map(|(start, reader)| (log, applier, start, reader))
        });
        // A panic of the state machine is caught there, so this one is the log's, or the runtime ends.
        let (log, applier, start, reader) = loaded.await.map_err(|error| LogError::Io {
            file: PathBuf::new(),
            action: "reading the log",
            reason: error.to_string(),
        })??;
        check_frames(&options, &start, transport.frame_bytes_max())?;
        let config = CoreConfig {
            id,
            group,
            options: options.clone(),
            seed,
            incarnation: start.identity().map_or(0, |identity| identity.incarnation),
            session: random_number(),
            entry_memory: self.entry_memory.unwrap_or_else(EntryMemory::of_process),
        };
        let mut core = Core::start(config, start)?;
        core.set_address(self.address);
        if let Some(damage) = log.damage() {
            core.set_log_damage(damage);
        }
        let mailbox = Arc::new(Mailbox::new(id, group, &options));
        let shared = Arc::new(NodeShared::new(Arc::clone(&mailbox)));
        let inbox = Inbox {
            shared: Arc::clone(&shared),
        };
        transport
            .start(inbox)
            .map_err(|error| StartError::Transport(error.to_string()))?;
        let log = if log.is_volatile() {
            LogSide::Inline(log, StageStats::default())
        } else {
            LogSide::Thread(LogThread::start(log, Arc::clone(&mailbox))?)
        };
        let apply = match options.apply {
            ApplyMode::Inline => ApplySide::Inline(Box::new(applier)),
            ApplyMode::Thread => {
                ApplySide::Thread(ApplyThread::start(applier, Arc::clone(&mailbox))?)
            }
        };
        let status = core.status();
        let published = Arc::new(Published {
            status: Snapshot::new(status),
            stats: Mutex::new(RaftStats::default()),
            report: watch::Sender::new(core.report()),
        });
        let (end, ended) = watch::channel(None);
        let now = tokio::time::Instant::now();
        let driver = Driver {
            core,
            mailbox,
            transport,
            log,
            fetcher: Fetcher::new(reader),
            apply,
            published: Arc::clone(&published),
            ended: end,
            start: now,
            due: now + options.tick,
            failed: None,
            last_status: status,
            scratch: Scratch::default(),
            holds: 0,
            #[cfg(feature = "metrics")]
            metrics: self.metrics,
        };
        shared.driver.set(driver);
        threads::spawn(task::run(Arc::clone(&shared), options.tick));
        Ok(RaftHandle {
            shared,
            published,
            ended,
        })
    }
}

/// Refuses options, and entries of a log that was written with others, that the transport cannot send: a message that is never taken would be
/// sent again for ever, and stop the group.
fn check_frames(
    options: &RaftOptions,
    start: &Start,
    frame_bytes_max: usize,
) -> Result<(), StartError> {
    let needed = options.frame_bytes_max();
    if needed > frame_bytes_max {
        return Err(StartError::Options {
            option: "message_bytes_max",
            reason: format!(
                "with `proposal_bytes_max` and `snapshot_chunk_bytes` leads to frames of {needed} bytes, and the transport takes \
                 {frame_bytes_max}: lower these or raise the transport's bound"
            ),
        });
    }
    let longest = match start.longest_payload() {
        0 => 0,
        bytes => payload_len_max(bytes),
    };
    let longest = longest + ENTRY_ROOM_BYTES;
    if longest > frame_bytes_max {
        return Err(StartError::Options {
            option: "proposal_bytes_max",
            reason: format!(
                "was larger once: the log has an entry that takes a frame of {longest} bytes, and the transport takes {frame_bytes_max}: \
                 raise the transport's bound"
            ),
        });
    }
    Ok(())
}

/// A number that no other start draws: of the system's generator, by way of the keys of a hash map, and of the moment.
fn random_number() -> u64 {
    let number = RandomState::new().hash_one((Instant::now(), std::process::id()));
    number.max(1)
}

/// What the log holds, or the beginning of a group, made durable. A panic is its own party's: the log's or the state machine's.
fn load(
    log: &mut dyn LogStore,
    group: GroupId,
    drawn: Identity,
    voters: &[u64],
    applier: &mut Applier,
) -> Result<(Start, Option<Box<dyn LogReader>>), StartError> {
    let empty = || {
        let made = catch_unwind(AssertUnwindSafe(|| applier.snapshot_at_start()));
        made.unwrap_or_else(|panic| Err(panic_message(&*panic)))
    };
    let opened = catch_unwind(AssertUnwindSafe(|| {
        open_log(log, group, drawn, voters, empty)
    }));
    opened.unwrap_or_else(|panic| {
        Err(StartError::Log(LogError::Io {
            file: PathBuf::new(),
            action: "reading the log",
            reason: panic_message(&*panic),
        }))
    })
}
