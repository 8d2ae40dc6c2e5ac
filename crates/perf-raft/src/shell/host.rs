//! Many groups in one process.

use super::apply_pool::ApplyPool;
use super::drive::Attached;
use super::handle::RaftHandle;
use super::inbox::{Groups, Inbox};
use super::log_thread::LogThread;
use super::open::{Log, NewGroup, Place, check_address, open, random_number};
use super::snapshot_io::SnapshotTraffic;
use super::task::TaskHandle;
use crate::GroupId;
use crate::error::{HostError, StartError};
use crate::log::{LogError, LogJob, LogStore, SharedLog};
use crate::memory::EntryMemory;
use crate::options::{ApplyMode, RaftOptions};
use crate::primitive::threads::Mutex;
use crate::state_machine::Machine;
use crate::transport::Transport;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// Threads and tasks of a kind that a host may have.
const THREADS_MAX: usize = 1024;

/// The nodes of many groups in one process. They share one log, with one thread and one `fdatasync` for all jobs that wait, one transport,
/// a fixed number of tasks that drive them, and a fixed number of threads for their state machines.
///
/// A [`RaftNode`](crate::RaftNode) is the same code with one group. Each group has its own leader, members and [`RaftHandle`]. A group whose state machine
/// fails or whose stored log contradicts itself stops alone; an error of the store stops all, since they share it.
///
/// A clone is a reference. Groups run until they are closed, or their runtime ends, whether there are references or not.
///
/// ```
/// # use bytes::Bytes;
/// # use perf_raft::{Command, StateMachine, StateMachineError};
/// # #[derive(Default)]
/// # struct Log(Vec<Bytes>);
/// # impl StateMachine for Log {
/// #     fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
/// #         responses.extend(batch.iter().map(|command| command.data.clone()));
/// #     }
/// #     fn snapshot(&mut self) -> Result<Bytes, StateMachineError> { Ok(Bytes::new()) }
/// #     fn restore(&mut self, _: Bytes) -> Result<(), StateMachineError> { Ok(()) }
/// # }
/// use perf_raft::{ChannelNetwork, GroupId, MemoryLog, RaftHost};
/// use std::time::Duration;
///
/// # tokio::runtime::Builder::new_multi_thread().enable_time().build()?.block_on(async {
/// let network = ChannelNetwork::new();
/// let host = RaftHost::builder(1)
///     .log_store(MemoryLog::new())
///     .transport(network.transport(1))
///     .start()
///     .await?;
/// for group in 1..=3 {
///     host.create_group(GroupId(group), Log::default(), [1]).await?;
/// }
/// let second = host.group(GroupId(2)).expect("it was made");
/// second.wait_for_leader(Duration::from_secs(10)).await.expect("it leads");
/// assert_eq!(second.propose(Bytes::from_static(b"hello")).await?, "hello");
/// host.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct RaftHost {
    shared: Arc<Shared>,
}

struct Shared {
    id: u64,
    address: String,
    options: RaftOptions,
    frame_bytes_max: usize,
    log: HostLog,
    tasks: Vec<Arc<TaskHandle>>,
    appliers: Option<Arc<ApplyPool>>,
    entry_memory: EntryMemory,
    snapshot_traffic: Arc<SnapshotTraffic>,
    #[cfg(feature = "metrics")]
    metrics: Option<Arc<crate::RaftMetrics>>,
    runtime: Handle,
    start: Instant,
    /// Where messages find their group.
    groups: Arc<Groups>,
    state: Mutex<State>,
}

struct State {
    places: BTreeMap<GroupId, GroupPlace>,
    /// `None` once the host was shut down.
    transport: Option<Arc<Attached>>,
}

enum GroupPlace {
    /// It is being opened, or closed or removed with this handle.
    Changing(Option<RaftHandle>),
    Open(RaftHandle),
}

enum HostLog {
    Thread(Arc<LogThread>),
    Memory(SharedLog),
}

/// A host that is being put together.
#[must_use = "a builder does nothing until `start`"]
pub struct RaftHostBuilder {
    id: u64,
    address: String,
    options: RaftOptions,
    log: Option<Box<dyn LogStore>>,
    transport: Option<Arc<dyn Transport>>,
    drivers: usize,
    apply_threads: usize,
    entry_memory: Option<EntryMemory>,
    #[cfg(feature = "metrics")]
    metrics: Option<Arc<crate::RaftMetrics>>,
}

impl fmt::Debug for RaftHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftHost")
            .field("id", &self.shared.id)
            .field("groups", &self.groups())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RaftHostBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftHostBuilder")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl RaftHostBuilder {
    /// Where the logs of all groups are kept. Needed.
    pub fn log_store(mut self, log: impl LogStore) -> Self {
        self.log = Some(Box::new(log));
        self
    }

    /// How messages get to the hosts of other nodes. Needed. It is started once, with an [`Inbox`] for all groups.
    pub fn transport(mut self, transport: impl Transport) -> Self {
        self.transport = Some(Arc::new(transport));
        self
    }

    /// Bounds and periods of each group.
    pub fn options(mut self, options: RaftOptions) -> Self {
        self.options = options;
        self
    }

    /// As [`RaftNodeBuilder::address`](crate::RaftNodeBuilder::address), in every group.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = address.into();
        self
    }

    /// Tasks that drive groups, 1 to 1024; as many as the machine has processors by default, 8 at most. A group belongs to one of them.
    pub fn drivers(mut self, drivers: usize) -> Self {
        self.drivers = drivers;
        self
    }

    /// Threads that run state machines, 1 to 1024; as many as the machine has processors by default, 4 at most. A state machine that stands still
    /// holds one of them. None is started with [`ApplyMode::Inline`].
    pub fn apply_threads(mut self, threads: usize) -> Self {
        self.apply_threads = threads;
        self
    }

    /// Records the figures of all groups together at each tick.
    #[cfg(feature = "metrics")]
    pub fn metrics(mut self, metrics: Arc<crate::RaftMetrics>) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// As [`RaftNodeBuilder::entry_memory`](crate::RaftNodeBuilder::entry_memory), for all groups together.
    pub fn entry_memory(mut self, memory: &EntryMemory) -> Self {
        self.entry_memory = Some(memory.clone());
        self
    }

    /// Starts the host on the present runtime, without groups. What the store holds is opened group by group: see [`RaftHost::stored_groups`].
    ///
    /// # Errors
    /// [`StartError`]: something is missing or out of range, or the transport does not start.
    pub async fn start(self) -> Result<RaftHost, StartError> {
        let missing = |what| StartError::Missing { what };
        let id = self.id;
        self.options.check()?;
        check_address(&self.address)?;
        check_count("drivers", self.drivers)?;
        check_count("apply_threads", self.apply_threads)?;
        if id == 0 {
            return Err(StartError::Options {
                option: "id",
                reason: "0 stands for no node".to_owned(),
            });
        }
        let store = self.log.ok_or_else(|| missing("log_store"))?;
        let transport = self.transport.ok_or_else(|| missing("transport"))?;
        let appliers = match self.options.apply {
            ApplyMode::Inline => None,
            ApplyMode::Thread => Some(Arc::new(ApplyPool::start(self.apply_threads, id)?)),
        };
        let log = if store.is_volatile() {
            HostLog::Memory(SharedLog::new(store))
        } else {
            HostLog::Thread(Arc::new(LogThread::start(store, true, id)?))
        };
        let groups = Groups::new(id, random_number(), &self.options);
        let started = transport.start(Inbox::of_groups(id, &groups));
        let started = started.map_err(|error| StartError::Transport(error.to_string()));
        if let (Err(_), HostLog::Thread(thread)) = (&started, &log) {
            // The files are free again when this returns.
            thread.end().await;
        }
        started?;
        let attached = Arc::new(Attached(Arc::clone(&transport)));
        groups.sleepers.attach(&attached);
        // One of the tasks sees to the groups that sleep.
        let first = Some(Arc::clone(&groups.sleepers));
        let others = std::iter::repeat_with(|| None);
        let sleepers = std::iter::once(first).chain(others).take(self.drivers);
        let shared = Shared {
            id,
            address: self.address,
            snapshot_traffic: Arc::new(SnapshotTraffic::new(&self.options)),
            options: self.options,
            frame_bytes_max: transport.frame_bytes_max(),
            log,
            tasks: sleepers.map(TaskHandle::start).collect(),
            appliers,
            entry_memory: self.entry_memory.unwrap_or_else(EntryMemory::of_process),
            #[cfg(feature = "metrics")]
            metrics: self.metrics,
            runtime: Handle::current(),
            start: Instant::now(),
            groups,
            state: Mutex::new(State {
                places: BTreeMap::new(),
                transport: Some(attached),
            }),
        };
        Ok(RaftHost {
            shared: Arc::new(shared),
        })
    }
}

fn check_count(option: &'static str, count: usize) -> Result<(), StartError> {
    if (1..=THREADS_MAX).contains(&count) {
        return Ok(());
    }
    Err(StartError::Options {
        option,
        reason: format!("is {count}, allowed are 1 to {THREADS_MAX}"),
    })
}

impl Drop for Shared {
    /// The tasks end with their last groups.
    fn drop(&mut self) {
        for task in &self.tasks {
            task.close();
        }
    }
}

impl RaftHost {
    /// Begins a host whose node has this id in all its groups, not 0.
    pub fn builder(id: u64) -> RaftHostBuilder {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        RaftHostBuilder {
            id,
            address: String::new(),
            options: RaftOptions::default(),
            log: None,
            transport: None,
            drivers: processors.min(8),
            apply_threads: processors.min(4),
            entry_memory: None,
            #[cfg(feature = "metrics")]
            metrics: None,
        }
    }

    /// Begins a group with these first members, or opens it if the log holds it: then `voters` is without effect, so a program may call this at each start.
    /// Call it on each of the first members alike, and on no node that joins later.
    ///
    /// # Errors
    /// [`StartError::GroupRuns`] if the group runs here, [`StartError::HostStopped`] after a shutdown, and others as for
    /// [`RaftNodeBuilder::start`](crate::RaftNodeBuilder::start). Other groups go on.
    pub async fn create_group(
        &self,
        group: GroupId,
        machine: impl Into<Machine>,
        voters: impl IntoIterator<Item = u64>,
    ) -> Result<RaftHandle, StartError> {
        let voters = voters.into_iter().collect();
        self.open(group, machine.into(), voters).await
    }

    /// Opens a group that the log holds, or one that this node is to join: then it waits until the group's leader takes it in.
    ///
    /// # Errors
    /// As [`create_group`](Self::create_group).
    pub async fn open_group(
        &self,
        group: GroupId,
        machine: impl Into<Machine>,
    ) -> Result<RaftHandle, StartError> {
        self.open(group, machine.into(), Vec::new()).await
    }

    async fn open(
        &self,
        group: GroupId,
        machine: Machine,
        voters: Vec<u64>,
    ) -> Result<RaftHandle, StartError> {
        let shared = &*self.shared;
        let transport = shared.begin_opening(group)?;
        // If the caller gives up meanwhile, the place is free again.
        let mut place = Changing {
            host: shared,
            group,
            becomes: None,
        };
        let new = NewGroup {
            group,
            options: shared.options.clone(),
            machine,
            voters,
            seed: None,
            #[cfg(feature = "metrics")]
            metrics: shared
                .metrics
                .as_ref()
                .map(crate::metrics::Recorder::of_group),
        };
        let task = shared.task(group);
        let opened = open(shared.place(), new, task, shared.frame_bytes_max, |node| {
            shared.groups.insert(Arc::clone(node));
            Ok(transport)
        });
        let handle = opened.await?;
        if shared.state.lock().transport.is_none() {
            handle.shutdown().await;
            return Err(StartError::HostStopped);
        }
        place.becomes = Some(GroupPlace::Open(handle.clone()));
        Ok(handle)
    }

    /// The handle of a group that was opened and not closed since, also if it has stopped by itself.
    #[must_use]
    pub fn group(&self, group: GroupId) -> Option<RaftHandle> {
        match self.shared.state.lock().places.get(&group)? {
            GroupPlace::Open(handle) => Some(handle.clone()),
            GroupPlace::Changing(_) => None,
        }
    }

    /// The groups that were opened and not closed since, in the order of their ids.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        let state = self.shared.state.lock();
        let open = state.places.iter();
        let open = open.filter(|(_, place)| matches!(place, GroupPlace::Open(_)));
        open.map(|(group, _)| *group).collect()
    }

    /// How many of the open groups sleep: see [`RaftOptions::sleep_after_ticks`].
    #[must_use]
    pub fn groups_asleep(&self) -> usize {
        self.shared.groups.sleepers.len()
    }

    /// The groups of which the log holds anything, opened or not.
    ///
    /// # Errors
    /// [`LogError`] if that cannot be read.
    pub async fn stored_groups(&self) -> Result<Vec<GroupId>, LogError> {
        match &self.shared.log {
            HostLog::Thread(thread) => thread.call(|log| log.all_groups()).await?,
            HostLog::Memory(log) => log.all_groups(),
        }
    }

    /// Stops a group on this node, which stays its member. Its log is kept. Without effect on a group that is not open. Takes as long as the call of its
    /// state machine that is under way.
    ///
    /// # Errors
    /// [`HostError::GroupChanges`] if another call opens or closes it at the moment.
    pub async fn close_group(&self, group: GroupId) -> Result<(), HostError> {
        let _place = self.close(group).await?;
        Ok(())
    }

    /// Stops a group on this node, if it is open, and takes away all that the log holds of it. To be called once the node is no member any more; one that
    /// still is one counts as a member whose disk was lost.
    ///
    /// # Errors
    /// As [`close_group`](Self::close_group), and [`HostError::Log`] if the log cannot be written; after a crash the group may be there again.
    pub async fn remove_group(&self, group: GroupId) -> Result<(), HostError> {
        let _place = self.close(group).await?;
        let job = LogJob {
            group,
            removes_group: true,
            ..LogJob::default()
        };
        let written = match &self.shared.log {
            HostLog::Thread(thread) => thread.call(move |log| log.write(&[job], true)).await?,
            HostLog::Memory(log) => log.clone().write(&[job], true),
        };
        Ok(written?)
    }

    /// Stops a group and keeps its place: no other call opens the group until what this returns is dropped.
    async fn close(&self, group: GroupId) -> Result<Changing<'_>, HostError> {
        let (handle, mut place) = self.shared.begin_closing(group)?;
        if let Some(handle) = handle {
            // If the caller gives up meanwhile, the group is still there: it may be opened again once it has stopped.
            place.becomes = Some(GroupPlace::Open(handle.clone()));
            handle.shutdown().await;
            place.becomes = None;
        }
        Ok(place)
    }

    /// Stops all groups, and closes the log. Returns when its files are closed and all state machines are dropped. No group can be opened afterwards;
    /// a call that opens one meanwhile stops it again.
    pub async fn shutdown(&self) {
        let groups = self.shared.end();
        // All at once: each may wait for its state machine.
        for handle in &groups {
            handle.stop();
        }
        for handle in &groups {
            handle.stopped().await;
        }
        for task in &self.shared.tasks {
            task.close();
        }
        for task in &self.shared.tasks {
            task.ended().await;
        }
        if let HostLog::Thread(thread) = &self.shared.log {
            thread.end().await;
        }
    }
}

/// A group's place while it is opened or closed.
struct Changing<'a> {
    host: &'a Shared,
    group: GroupId,
    /// Empty if `None`.
    becomes: Option<GroupPlace>,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut state = self.host.state.lock();
        match self.becomes.take() {
            Some(place) => drop(state.places.insert(self.group, place)),
            None => {
                state.places.remove(&self.group);
                drop(state);
                self.host.groups.remove(self.group);
            }
        }
    }
}

impl Shared {
    fn begin_opening(&self, group: GroupId) -> Result<Arc<Attached>, StartError> {
        let mut state = self.state.lock();
        let transport = state.transport.clone().ok_or(StartError::HostStopped)?;
        match state.places.get(&group) {
            Some(GroupPlace::Open(handle)) if handle.has_stopped() => {}
            Some(_) => return Err(StartError::GroupRuns { group: group.0 }),
            None => {}
        }
        state.places.insert(group, GroupPlace::Changing(None));
        Ok(transport)
    }

    fn begin_closing(
        &self,
        group: GroupId,
    ) -> Result<(Option<RaftHandle>, Changing<'_>), HostError> {
        let mut state = self.state.lock();
        let handle = match state.places.get(&group) {
            Some(GroupPlace::Changing(_)) => {
                return Err(HostError::GroupChanges { group: group.0 });
            }
            Some(GroupPlace::Open(handle)) => Some(handle.clone()),
            None => None,
        };
        let changing = GroupPlace::Changing(handle.clone());
        state.places.insert(group, changing);
        let place = Changing {
            host: self,
            group,
            becomes: None,
        };
        Ok((handle, place))
    }

    /// Lets no group be opened any more. Returns those that are open or being closed.
    fn end(&self) -> Vec<RaftHandle> {
        let mut state = self.state.lock();
        let transport = state.transport.take();
        let open = state.places.values();
        let open = open.filter_map(|place| match place {
            GroupPlace::Open(handle) => Some(handle.clone()),
            GroupPlace::Changing(closing) => closing.clone(),
        });
        let open = open.collect();
        drop(state);
        drop(transport);
        open
    }

    fn task(&self, group: GroupId) -> &TaskHandle {
        // Ids that follow each other are spread evenly.
        &self.tasks[(group.0 % self.tasks.len() as u64) as usize]
    }

    fn place(&self) -> Place {
        Place {
            id: self.id,
            address: self.address.clone(),
            log: match &self.log {
                HostLog::Thread(thread) => Log::Thread(Arc::clone(thread)),
                HostLog::Memory(log) => Log::Inline(Box::new(log.clone())),
            },
            appliers: self.appliers.clone(),
            entry_memory: self.entry_memory.clone(),
            snapshot_traffic: Arc::clone(&self.snapshot_traffic),
            runtime: self.runtime.clone(),
            start: self.start,
            sleepers: Some(Arc::clone(&self.groups.sleepers)),
        }
    }
}
