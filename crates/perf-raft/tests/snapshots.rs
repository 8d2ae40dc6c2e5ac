//! Snapshots as streams: made beside applying, sent in pieces, resumed after a cut, and ended with their node.
#![cfg(feature = "durable")]

mod common;

use bytes::Bytes;
use common::options;
use parking_lot::{Condvar, Mutex};
use perf_raft::codec::{Body, Frame};
use perf_raft::log::{SegmentLog, SharedLog};
use perf_raft::{
    ChannelNetwork, Command, GroupId, Inbox, LogStore, Machine, MemoryLog, OutboundMessage,
    ProposeError, RaftHandle, RaftNode, RaftOptions, SendError, StateMachine, StateMachineError,
    StreamedStateMachine, Transport,
};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Bytes of a state beside its numbers: more than all windows together.
const PADDING: u64 = 3_000_000;

/// The numbers that were applied, and a long snapshot of them.
#[derive(Clone, Default)]
struct Numbers {
    state: Arc<Mutex<Vec<u64>>>,
    /// Readers wait while it is closed.
    gate: Arc<Gate>,
    restored: Arc<AtomicU64>,
}

#[derive(Default)]
struct Gate {
    is_closed: Mutex<bool>,
    changed: Condvar,
    /// Readers that wait.
    waiting: AtomicU64,
}

impl Gate {
    fn set(&self, is_closed: bool) {
        *self.is_closed.lock() = is_closed;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut is_closed = self.is_closed.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while *is_closed {
            self.changed.wait(&mut is_closed);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

fn padding(place: u64) -> u8 {
    (place % 251) as u8
}

impl StreamedStateMachine for Numbers {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        let mut state = self.state.lock();
        for command in batch {
            let number = command
                .data
                .first_chunk()
                .map_or(0, |n| u64::from_le_bytes(*n));
            state.push(number);
            responses.push(Bytes::from((state.len() as u64).to_le_bytes().to_vec()));
        }
    }

    fn snapshot(&mut self) -> Result<Box<dyn Read + Send>, StateMachineError> {
        Ok(Box::new(Stream {
            numbers: self.state.lock().clone(),
            place: 0,
            gate: Arc::clone(&self.gate),
        }))
    }

    fn restore(&mut self, snapshot: &mut dyn Read, _: u64) -> Result<(), StateMachineError> {
        let mut padded = [0; 4096];
        let mut place = 0;
        while place < PADDING {
            let most = padded.len().min((PADDING - place) as usize);
            let read = snapshot.read(&mut padded[..most])?;
            if read == 0 {
                // Of a machine that has applied nothing, in memory.
                return Err("it is too short".into());
            }
            for byte in &padded[..read] {
                if *byte != padding(place) {
                    return Err(format!("byte {place} is {byte}").into());
                }
                place += 1;
            }
        }
        let mut numbers = Vec::new();
        snapshot.read_to_end(&mut numbers)?;
        let numbers = numbers
            .chunks_exact(8)
            .filter_map(|number| number.first_chunk());
        *self.state.lock() = numbers.map(|number| u64::from_le_bytes(*number)).collect();
        self.restored.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Makes the snapshot as it is read.
struct Stream {
    numbers: Vec<u64>,
    place: u64,
    gate: Arc<Gate>,
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.place > 0 {
            // Not at once: the first bytes show that it was begun.
            self.gate.pass();
        }
        let total = PADDING + 8 * self.numbers.len() as u64;
        let read = buffer.len().min((total - self.place) as usize).min(100_000);
        for byte in &mut buffer[..read] {
            *byte = match self.place.checked_sub(PADDING) {
                None => padding(self.place),
                Some(rest) => self.numbers[rest as usize / 8].to_le_bytes()[rest as usize % 8],
            };
            self.place += 1;
        }
        Ok(read)
    }
}

/// A network that counts bytes of snapshots, and may cut them.
#[derive(Clone)]
struct Cut {
    inner: Arc<dyn Transport>,
    bytes: Arc<AtomicU64>,
    /// From so many bytes on parts of snapshots are lost.
    limit: Arc<AtomicU64>,
    /// Who got the parts.
    receivers: Arc<Mutex<Vec<u64>>>,
}

impl Transport for Cut {
    fn start(&self, inbox: Inbox) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.inner.start(inbox)
    }

    fn send(&self, message: OutboundMessage) -> Result<(), SendError> {
        if let Ok(frame) = Frame::decode(message.frame.clone())
            && let Body::Chunk(chunk) = frame.body
        {
            let sent = self.bytes.load(Ordering::SeqCst);
            if sent >= self.limit.load(Ordering::SeqCst) {
                return Ok(());
            }
            self.receivers.lock().push(message.to);
            self.bytes
                .fetch_add(chunk.data.len() as u64, Ordering::SeqCst);
        }
        self.inner.send(message)
    }

    fn shares_frames(&self) -> bool {
        self.inner.shares_frames()
    }

    fn stop(&self) {
        self.inner.stop();
    }
}

struct Group {
    network: ChannelNetwork,
    bytes: Arc<AtomicU64>,
    limit: Arc<AtomicU64>,
    receivers: Arc<Mutex<Vec<u64>>>,
    options: RaftOptions,
}

impl Group {
    fn new() -> Self {
        let mut options = options();
        options.snapshot_chunk_bytes = 16 * 1024;
        options.snapshot_window_chunks = 4;
        options.log_entries_kept = 0;
        Self {
            network: ChannelNetwork::new(),
            bytes: Arc::default(),
            limit: Arc::new(AtomicU64::new(u64::MAX)),
            receivers: Arc::default(),
            options,
        }
    }

    async fn start(
        &self,
        id: u64,
        voters: &[u64],
        log: impl LogStore,
        machine: impl Into<Machine>,
    ) -> RaftHandle {
        let transport = Cut {
            inner: Arc::new(self.network.transport(id)),
            bytes: Arc::clone(&self.bytes),
            limit: Arc::clone(&self.limit),
            receivers: Arc::clone(&self.receivers),
        };
        RaftNode::builder(id)
            .group(GroupId(4))
            .log_store(log)
            .transport(transport)
            .state_machine(machine)
            .options(self.options.clone())
            .bootstrap(voters.iter().copied())
            .start()
            .await
            .expect("it starts")
    }

    /// A node alone that leads.
    async fn leader(&self, log: impl LogStore, machine: impl Into<Machine>) -> RaftHandle {
        let leader = self.start(1, &[1], log, machine).await;
        let found = leader.wait_for_leader(Duration::from_secs(60)).await;
        assert_eq!(found, Some(1));
        leader
    }
}

fn folder() -> TempDir {
    TempDir::new().expect("a folder")
}

fn open(folder: &TempDir) -> SegmentLog {
    SegmentLog::open(folder.path()).expect("it opens")
}

fn number(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_le_bytes())
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let reached = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reached = tokio::time::timeout(Duration::from_secs(60), reached).await;
    reached.unwrap_or_else(|_| panic!("in time: {what}"));
}

fn files(folder: &Path, wanted: impl Fn(&str) -> bool) -> usize {
    let files = std::fs::read_dir(folder).expect("it is there");
    let names = files.map(|file| file.expect("it is there").file_name());
    names.filter(|name| wanted(&name.to_string_lossy())).count()
}

fn snapshot_files(folder: &Path) -> usize {
    files(folder, |name| {
        name.ends_with(".snapshot") || (name.ends_with(".tmp") && name.contains('-'))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_applied_while_a_snapshot_is_written() {
    let (group, folder, machine) = (Group::new(), folder(), Numbers::default());
    let leader = group
        .leader(open(&folder), Machine::streamed(machine.clone()))
        .await;
    leader.propose(number(1)).await.expect("it leads");
    machine.gate.set(true);
    let asked = tokio::spawn({
        let leader = leader.clone();
        async move { leader.snapshot().await }
    });
    let gate = Arc::clone(&machine.gate);
    until("it is being written", || {
        gate.waiting.load(Ordering::SeqCst) > 0
    })
    .await;
    for n in 2..=100 {
        leader.propose(number(n)).await.expect("it goes on");
    }
    assert!(!asked.is_finished(), "it is still being written");
    machine.gate.set(false);
    let index = asked.await.expect("no panic").expect("it is made");
    assert!(
        index < leader.status().applied_index,
        "of the moment when it was asked for"
    );
    leader.shutdown().await;
    assert_eq!(snapshot_files(folder.path()), 1);
    drop(leader);

    // The next start restores it from the log, and gets what came after it.
    let restored = Numbers::default();
    let leader = group
        .leader(open(&folder), Machine::streamed(restored.clone()))
        .await;
    leader.read_index().await.expect("it leads");
    assert_eq!(*restored.state.lock(), (1..=100).collect::<Vec<_>>());
    assert_eq!(restored.restored.load(Ordering::SeqCst), 1);
    leader.shutdown().await;
}

/// A follower that joins gets the state; the stream is cut and goes on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_cut_goes_on_where_it_was() {
    let (group, folders) = (Group::new(), [folder(), folder()]);
    let machines = [Numbers::default(), Numbers::default()];
    let log = SharedLog::new(open(&folders[0]));
    let leader = group
        .leader(log, Machine::streamed(machines[0].clone()))
        .await;
    for n in 1..=50 {
        leader.propose(number(n)).await.expect("it leads");
    }
    leader.snapshot().await.expect("it is made");
    group.limit.store(PADDING / 2, Ordering::SeqCst);
    let joins = group
        .start(
            2,
            &[],
            open(&folders[1]),
            Machine::streamed(machines[1].clone()),
        )
        .await;
    let added = tokio::spawn({
        let leader = leader.clone();
        async move {
            let add = vec![perf_raft::MembershipChange::AddLearner(2)];
            leader.change_membership(add).await
        }
    });
    let bytes = Arc::clone(&group.bytes);
    until("half of it is sent", || {
        bytes.load(Ordering::SeqCst) >= PADDING / 2
    })
    .await;
    // For so long that the transfer is given up, and another one begins: its first part is lost, too.
    let election = group.options.tick * group.options.election_ticks as u32;
    tokio::time::sleep(election * 20).await;
    assert_eq!(machines[1].restored.load(Ordering::SeqCst), 0);
    group.limit.store(u64::MAX, Ordering::SeqCst);
    until("it is restored", || {
        machines[1].restored.load(Ordering::SeqCst) > 0
    })
    .await;
    added.await.expect("no panic").expect("it is a learner");
    until("it has all", || {
        joins.status().applied_index >= leader.status().applied_index
    })
    .await;
    assert_eq!(*machines[1].state.lock(), (1..=50).collect::<Vec<_>>());
    let window = (group.options.snapshot_chunk_bytes * group.options.snapshot_window_chunks) as u64;
    let total = group.bytes.load(Ordering::SeqCst);
    // All of it once, and what was under way at the cut.
    let most = PADDING + 8 * 50 + 2 * window;
    let stats = leader.stats().core;
    assert!(
        total <= most,
        "{total} bytes were sent of {most}: {stats:?}"
    );
    for handle in [joins, leader] {
        handle.shutdown().await;
    }
    for folder in &folders {
        assert_eq!(snapshot_files(folder.path()), 1);
    }
}

/// A node that stops while it receives leaves its files free, though its handle lives on, and nothing of what it got.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_while_it_receives_leaves_its_files() {
    let (group, folders) = (Group::new(), [folder(), folder()]);
    let machine = Numbers::default();
    let leader = group
        .leader(open(&folders[0]), Machine::streamed(machine.clone()))
        .await;
    leader.propose(number(1)).await.expect("it leads");
    let mut handles = Vec::new();
    for round in 1..=10 {
        let before = group.bytes.load(Ordering::SeqCst);
        let joins = Machine::streamed(Numbers::default());
        let node = group.start(2, &[], open(&folders[1]), joins).await;
        if round == 1 {
            let leader = leader.clone();
            tokio::spawn(async move {
                let add = vec![perf_raft::MembershipChange::AddLearner(2)];
                let _ = leader.change_membership(add).await;
            });
        }
        let bytes = Arc::clone(&group.bytes);
        until("some of it is sent", || {
            bytes.load(Ordering::SeqCst) >= before + 20_000 * round
                || node.status().applied_index > 0
        })
        .await;
        node.shutdown().await;
        handles.push(node);
        let is_part = |name: &str| name.ends_with(".tmp");
        assert_eq!(files(folders[1].path(), is_part), 0, "round {round}");
    }
    leader.shutdown().await;
}

/// Three peers need a snapshot, and one is sent at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_snapshots_are_sent_at_a_time_than_may_be() {
    let mut group = Group::new();
    group.options.snapshot_transfers_max = 1;
    group.options.snapshot_bytes_per_second = Some(200_000_000);
    let folders = [(); 4].map(|()| folder());
    let machine = Numbers::default();
    let leader = group
        .leader(open(&folders[0]), Machine::streamed(machine.clone()))
        .await;
    leader.propose(number(1)).await.expect("it leads");
    let mut peers = Vec::new();
    for id in 2..=4_u64 {
        let joins = Machine::streamed(Numbers::default());
        peers.push(
            group
                .start(id, &[], open(&folders[id as usize - 1]), joins)
                .await,
        );
    }
    let add = (2..=4).map(perf_raft::MembershipChange::AddLearner);
    leader
        .change_membership(add.collect())
        .await
        .expect("they are learners");
    for peer in &peers {
        until("it has all", || {
            peer.status().applied_index >= leader.status().applied_index
        })
        .await;
    }
    let mut receivers = group.receivers.lock().clone();
    receivers.dedup();
    let mut each = receivers.clone();
    each.sort_unstable();
    each.dedup();
    assert_eq!(each, [2, 3, 4]);
    assert_eq!(receivers.len(), 3, "one after the other: {receivers:?}");
    for node in peers.iter().chain([&leader]) {
        node.shutdown().await;
    }
}

/// A machine of bytes gives its snapshots to the same stores and peers as one of streams.
#[derive(Clone, Default)]
struct Whole(Numbers);

impl StateMachine for Whole {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        self.0.apply(batch, responses);
    }

    fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
        let mut bytes = Vec::new();
        self.0.snapshot()?.read_to_end(&mut bytes)?;
        Ok(bytes.into())
    }

    fn restore(&mut self, snapshot: Bytes) -> Result<(), StateMachineError> {
        self.0.restore(&mut &snapshot[..], 0)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_of_bytes_and_of_streams_take_each_others_snapshots_on_any_store() {
    let group = Group::new();
    let folder = folder();
    let machines = [(); 4].map(|()| Numbers::default());
    let leader = group
        .leader(open(&folder), Whole(machines[0].clone()))
        .await;
    for n in 1..=20 {
        leader.propose(number(n)).await.expect("it leads");
    }
    leader.snapshot().await.expect("it is made");
    let streamed = |place: usize| Machine::streamed(machines[place].clone());
    let others = [
        group.start(2, &[], MemoryLog::new(), streamed(1)).await,
        group
            .start(3, &[], MemoryLog::restartable(), streamed(2))
            .await,
        group
            .start(4, &[], MemoryLog::restartable(), Whole(machines[3].clone()))
            .await,
    ];
    for id in 2..=4 {
        let add = vec![perf_raft::MembershipChange::AddVoter(id)];
        leader.change_membership(add).await.expect("it is added");
    }
    // Each makes snapshots itself, and sends them.
    for (place, from) in others.iter().enumerate() {
        leader
            .transfer_leader(from.id())
            .await
            .expect("it takes over");
        from.propose(number(100 + place as u64))
            .await
            .expect("it leads");
        from.snapshot().await.expect("it is made");
        leader.wait_for_leader(Duration::from_secs(60)).await;
        from.transfer_leader(1).await.expect("it is given back");
    }
    let last = leader.status().applied_index;
    for (place, node) in others.iter().enumerate() {
        until("it has all", || node.status().applied_index >= last).await;
        assert_eq!(*machines[place + 1].state.lock(), *machines[0].state.lock());
        node.shutdown().await;
    }
    leader.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_too_long_or_fails_is_no_snapshot_and_the_node_goes_on() {
    let mut group = Group::new();
    group.options.snapshot_bytes_max = PADDING as usize / 2;
    let (folder, machine) = (folder(), Numbers::default());
    // The group begins with the empty state, which must fit.
    let failing = Failing::default();
    let leader = group
        .leader(open(&folder), Machine::streamed(failing.clone()))
        .await;
    for (fails, said) in [
        (true, "of the test"),
        (false, "`snapshot_bytes_max` = 1500000"),
    ] {
        failing.fails.store(fails, Ordering::SeqCst);
        failing.is_long.store(!fails, Ordering::SeqCst);
        leader.propose(number(1)).await.expect("it leads");
        let refused = leader.snapshot().await;
        let Err(ProposeError::NoSnapshot { reason }) = &refused else {
            panic!("{refused:?}");
        };
        assert!(reason.contains(said), "{reason}");
    }
    failing.is_long.store(false, Ordering::SeqCst);
    leader.propose(number(2)).await.expect("it goes on");
    leader.snapshot().await.expect("it is made");
    leader.shutdown().await;
    assert_eq!(
        snapshot_files(folder.path()),
        1,
        "nothing is left of those that failed"
    );
    drop(machine);
}

/// Streams without content, but for those that fail or have no end.
#[derive(Clone, Default)]
struct Failing {
    fails: Arc<AtomicBool>,
    is_long: Arc<AtomicBool>,
}

impl StreamedStateMachine for Failing {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        responses.extend(batch.iter().map(|command| command.data.clone()));
    }

    fn snapshot(&mut self) -> Result<Box<dyn Read + Send>, StateMachineError> {
        if self.fails.load(Ordering::SeqCst) {
            struct Fails;
            impl Read for Fails {
                fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                    Err(std::io::Error::other("of the test"))
                }
            }
            return Ok(Box::new(std::io::repeat(1).take(400_000).chain(Fails)));
        }
        Ok(match self.is_long.load(Ordering::SeqCst) {
            true => Box::new(std::io::repeat(1)),
            false => Box::new(std::io::empty()),
        })
    }

    fn restore(&mut self, _: &mut dyn Read, _: u64) -> Result<(), StateMachineError> {
        Ok(())
    }
}

/// The files are free when a node has stopped, also while a snapshot is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_ends_what_it_writes() {
    let (group, folder, machine) = (Group::new(), folder(), Numbers::default());
    for _ in 0..3 {
        let leader = group
            .leader(open(&folder), Machine::streamed(machine.clone()))
            .await;
        leader.propose(number(1)).await.expect("it leads");
        machine.gate.set(true);
        let asked = tokio::spawn({
            let leader = leader.clone();
            async move { leader.snapshot().await }
        });
        let gate = Arc::clone(&machine.gate);
        until("it is being written", || {
            gate.waiting.load(Ordering::SeqCst) > 0
        })
        .await;
        let stopping = tokio::spawn({
            let leader = leader.clone();
            async move { leader.shutdown().await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        machine.gate.set(false);
        stopping.await.expect("no panic");
        let outcome = asked.await.expect("no panic");
        assert!(
            matches!(outcome, Err(ProposeError::Stopped(_))),
            "{outcome:?}"
        );
    }
    assert_eq!(snapshot_files(folder.path()), 1);
}

/// Its state is empty.
struct Nothing;

impl perf_raft::StateMachine for Nothing {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        responses.extend(batch.iter().map(|_| Bytes::new()));
    }

    fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
        Ok(Bytes::new())
    }

    fn restore(&mut self, _: Bytes) -> Result<(), StateMachineError> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_snapshot_arrives() {
    let group = Group::new();
    let folders = [(); 2].map(|()| folder());
    let leader = group
        .leader(open(&folders[0]), Machine::from(Nothing))
        .await;
    leader.propose(number(1)).await.expect("it leads");
    leader.snapshot().await.expect("it is empty");
    let joins = Machine::from(Nothing);
    let peer = group.start(2, &[], open(&folders[1]), joins).await;
    let add = vec![perf_raft::MembershipChange::AddLearner(2)];
    leader
        .change_membership(add)
        .await
        .expect("it is a learner");
    until("it has all", || {
        peer.status().applied_index >= leader.status().applied_index
    })
    .await;
    peer.shutdown().await;
    leader.shutdown().await;
}
