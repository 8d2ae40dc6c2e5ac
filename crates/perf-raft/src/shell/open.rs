//! Opens a group: reads its log, or begins it, and gives it to the task that drives it.

use super::apply::{Applier, no_pieces};
use super::apply_pool::{ApplyClient, ApplyPool};
use super::drive::{ApplySide, Attached, Driver, LogSide, Published, Scratch, first_tick};
use super::fetcher::Fetcher;
use super::handle::RaftHandle;
use super::log_thread::LogThread;
use super::mailbox::Mailbox;
use super::shared::NodeShared;
use super::sleepers::{Sleeper, Sleepers};
use super::snapshot_io::{SnapshotIo, SnapshotTraffic};
use super::stats::{RaftStats, StageStats};
use super::task::TaskHandle;
use crate::GroupId;
use crate::codec::{ENTRY_ROOM_BYTES, payload_len_max};
use crate::core::{ADDRESS_BYTES_MAX, Core, CoreConfig, Start, open_log};
use crate::error::{StartError, panic_message};
use crate::log::{LogError, LogReader, LogStore, SnapshotStore};
use crate::members::Identity;
use crate::memory::EntryMemory;
use crate::options::RaftOptions;
use crate::primitive::threads;
use crate::state_machine::Machine;
use bytes::Bytes;
use parking_lot::Mutex;
use perf_atomics::Snapshot;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Where a group lives: what it shares with the others of its host.
pub(crate) struct Place {
    pub(crate) id: u64,
    pub(crate) address: String,
    pub(crate) log: Log,
    /// None if state machines run where Raft is driven.
    pub(crate) appliers: Option<Arc<ApplyPool>>,
    pub(crate) entry_memory: EntryMemory,
    pub(crate) snapshot_traffic: Arc<SnapshotTraffic>,
    pub(crate) runtime: Handle,
    /// Ticks of all groups are whole periods after it.
    pub(crate) start: tokio::time::Instant,
    /// None if its groups never sleep.
    pub(crate) sleepers: Option<Arc<Sleepers>>,
}

/// Where log jobs go.
pub(crate) enum Log {
    /// To a log in memory.
    Inline(Box<dyn LogStore>),
    Thread(Arc<LogThread>),
}

/// What a group brings along.
pub(crate) struct NewGroup {
    pub(crate) group: GroupId,
    pub(crate) options: RaftOptions,
    pub(crate) machine: Machine,
    pub(crate) voters: Vec<u64>,
    pub(crate) seed: Option<u64>,
    #[cfg(feature = "metrics")]
    pub(crate) metrics: Option<crate::metrics::Recorder>,
}

/// What a log held of a group.
struct Loaded {
    start: Start,
    reader: Option<Box<dyn LogReader>>,
    snapshots: Option<Arc<dyn SnapshotStore>>,
    damage: Option<String>,
}

/// Opens a group and adds it to a task. `attach` makes it reachable for messages.
pub(crate) async fn open(
    place: Place,
    new: NewGroup,
    task: &TaskHandle,
    frame_bytes_max: usize,
    attach: impl FnOnce(&Arc<NodeShared>) -> Result<Arc<Attached>, StartError>,
) -> Result<RaftHandle, StartError> {
    let Place { id, log, .. } = place;
    let NewGroup { group, options, .. } = new;
    let identity = Identity {
        node: id,
        incarnation: random_number(),
    };
    let beginning = Beginning {
        group,
        identity,
        voters: new.voters,
    };
    let applier = Applier::new(new.machine, options.snapshot_bytes_max);
    let (applier, durable) = ask_machine(applier, Applier::durable_index).await?;
    let durable = durable.map_err(StartError::StateMachine)?;
    let (log, mut applier, loaded) = load(log, beginning, applier, durable).await?;
    let Loaded {
        start,
        reader,
        snapshots,
        damage,
    } = loaded;
    let mut start = start;
    if let Some(index) = start.meet_machine(durable)? {
        applier.begin_at(index);
    }
    check_frames(&options, &start, frame_bytes_max)?;
    let config = CoreConfig {
        id,
        group,
        options: options.clone(),
        seed: new
            .seed
            .unwrap_or_else(|| RandomState::new().hash_one((id, group))),
        incarnation: start.identity().map_or(0, |identity| identity.incarnation),
        session: random_number(),
        entry_memory: place.entry_memory,
    };
    let mut core = Core::start(config, start)?;
    core.set_address(place.address);
    if let Some(damage) = damage {
        core.set_log_damage(damage);
    }
    let (number, notifier) = task.notifier();
    let mailbox = Arc::new(Mailbox::new(id, group, &options, notifier));
    let shared = Arc::new(NodeShared::new(Arc::clone(&mailbox), place.runtime.id()));
    let transport = attach(&shared)?;
    let snapshots = snapshots.map(|store| {
        core.stream_snapshots();
        if durable.is_some() {
            core.machine_is_durable();
        }
        let (mailbox, runtime) = (Arc::clone(&mailbox), place.runtime.clone());
        let io = SnapshotIo::new(
            store,
            group,
            mailbox,
            runtime,
            place.snapshot_traffic,
            &options,
        );
        applier.set_snapshots(io.data());
        io
    });
    let log = match log {
        Log::Inline(store) => LogSide::Inline(store, StageStats::default()),
        Log::Thread(thread) => LogSide::Thread(thread),
    };
    let apply = match &place.appliers {
        None => ApplySide::Inline(Box::new(applier)),
        Some(pool) => ApplySide::Pool(ApplyClient::new(pool, applier, Arc::clone(&mailbox))),
    };
    let status = core.status();
    let published = Arc::new(Published {
        status: Snapshot::new(status),
        stats: Mutex::new(RaftStats::default()),
        report: watch::Sender::new(core.report()),
    });
    let (end, ended) = watch::channel(None);
    let now = tokio::time::Instant::now();
    let due = first_tick(place.start, now, options.tick);
    let driver = Driver {
        core,
        mailbox,
        transport,
        log,
        fetcher: Fetcher::new(reader, place.runtime),
        snapshots,
        apply,
        published: Arc::clone(&published),
        ended: end,
        start: now,
        due,
        failed: None,
        last_status: status,
        scratch: Scratch::default(),
        holds: 0,
        sleeper: place.sleepers.as_ref().map(|all| Sleeper::new(all, group)),
        #[cfg(feature = "metrics")]
        metrics: new.metrics,
    };
    shared.driver.set(driver);
    task.add(number, Arc::clone(&shared), due, options.tick);
    Ok(RaftHandle {
        shared,
        published,
        ended,
    })
}

/// Refuses an address that is too long.
pub(crate) fn check_address(address: &str) -> Result<(), StartError> {
    if address.len() <= ADDRESS_BYTES_MAX {
        return Ok(());
    }
    Err(StartError::Options {
        option: "address",
        reason: format!(
            "it has {} bytes, at most {ADDRESS_BYTES_MAX} are allowed",
            address.len()
        ),
    })
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
pub(crate) fn random_number() -> u64 {
    let number = RandomState::new().hash_one((Instant::now(), std::process::id()));
    number.max(1)
}

/// A group that begins if the log does not hold it.
#[derive(Clone)]
struct Beginning {
    group: GroupId,
    identity: Identity,
    voters: Vec<u64>,
}

/// What the log holds, or the beginning of a group, made durable.
///
/// The log is read where it is written: others' writes wait. The state machine, which may be slow, is asked for its empty state elsewhere, and
/// only if the group begins.
async fn load(
    mut log: Log,
    beginning: Beginning,
    mut applier: Applier,
    durable: Option<u64>,
) -> Result<(Log, Applier, Loaded), StartError> {
    let mut empty = None;
    if let Some(index @ 1..) = durable {
        // Its state must not become the beginning of a group.
        empty = Some(Err(format!(
            "it is durable up to {index}, and the log is empty: the log is lost, or this machine is another node's; remove its files, and the node \
             joins its group again"
        )));
    }
    loop {
        let (its, given) = (beginning.clone(), empty.take());
        let found;
        (log, found) = match log {
            Log::Thread(thread) => {
                let found = thread.call(move |store| read(store, &its, given)).await;
                (Log::Thread(thread), found?)
            }
            Log::Inline(mut store) => {
                let found = blocking(move || {
                    let found = read(store.as_mut(), &its, given);
                    (Log::Inline(store), found)
                });
                found.await?
            }
        };
        if let Some(loaded) = found? {
            return Ok((log, applier, loaded));
        }
        let made;
        (applier, made) = ask_machine(applier, Applier::snapshot_at_start).await?;
        empty = Some(made);
    }
}

/// Asks a state machine, which may be slow, on a thread that no other group needs.
async fn ask_machine<R: Send + 'static>(
    mut applier: Applier,
    ask: fn(&mut Applier) -> Result<R, String>,
) -> Result<(Applier, Result<R, String>), StartError> {
    blocking(move || {
        let said = catch_unwind(AssertUnwindSafe(|| ask(&mut applier)));
        let said = said.unwrap_or_else(|panic| Err(panic_message(&*panic)));
        (applier, said)
    })
    .await
}

/// Reads what the log holds, or begins the group. `None` if it begins, and needs the state machine's empty state for that. A panic is the log's.
fn read(
    log: &mut dyn LogStore,
    beginning: &Beginning,
    empty: Option<Result<Bytes, String>>,
) -> Result<Option<Loaded>, StartError> {
    let Beginning {
        group,
        identity,
        voters,
    } = beginning;
    let mut begins = false;
    let empty = || {
        begins = empty.is_none();
        empty.unwrap_or_else(|| Err("it was not asked yet".to_owned()))
    };
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let (start, reader) = open_log(log, *group, *identity, voters, empty)?;
        let damage = log.damage();
        let snapshots = log.snapshots()?;
        let stored = start.snapshot().and_then(|snapshot| snapshot.stored);
        if stored.is_some() && snapshots.is_none() {
            return Err(StartError::Log(no_pieces()));
        }
        Ok(Loaded {
            start,
            reader,
            snapshots,
            damage,
        })
    }));
    let opened = opened.unwrap_or_else(|panic| {
        Err(StartError::Log(LogError::Io {
            file: PathBuf::new(),
            action: "reading the log",
            reason: panic_message(&*panic),
        }))
    });
    match opened {
        Err(_) if begins => Ok(None),
        opened => opened.map(Some),
    }
}

/// Runs work for which tasks of this thread shall not wait.
async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, StartError> {
    // Panics are caught within, so an error means that the runtime ends.
    threads::spawn_blocking(work).await.map_err(|error| {
        StartError::Log(LogError::Io {
            file: PathBuf::new(),
            action: "reading the log",
            reason: error.to_string(),
        })
    })
}
