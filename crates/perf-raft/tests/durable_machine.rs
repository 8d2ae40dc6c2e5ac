//! A machine that is durable by itself, of `examples/redb_kv`: killed, restarted, and at odds with its log.
#![cfg(feature = "durable")]

#[path = "../examples/redb_kv/machine.rs"]
mod machine;

use bytes::Bytes;
use machine::RedbKv;
use perf_raft::{
    ChannelNetwork, Command, Machine, RaftHandle, RaftNode, RaftOptions, SegmentLog, StartError,
    StateMachineError, StreamedStateMachine,
};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const CHILD_FOLDER: &str = "PERF_RAFT_DURABLE_FOLDER";

/// Counts what a node does to its machine.
#[derive(Clone)]
struct Counted {
    machine: RedbKv,
    restored: Arc<AtomicU64>,
    commands: Arc<AtomicU64>,
}

impl StreamedStateMachine for Counted {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        let commands = batch.len() as u64;
        self.commands.fetch_add(commands, Ordering::SeqCst);
        self.machine.apply(batch, responses);
    }

    fn snapshot(&mut self) -> Result<Box<dyn Read + Send>, StateMachineError> {
        self.machine.snapshot()
    }

    fn restore(&mut self, snapshot: &mut dyn Read, index: u64) -> Result<(), StateMachineError> {
        self.restored.fetch_add(1, Ordering::SeqCst);
        self.machine.restore(snapshot, index)
    }

    fn applied_index(&mut self) -> Result<Option<u64>, StateMachineError> {
        self.machine.applied_index()
    }
}

fn open(folder: &Path) -> Counted {
    Counted {
        machine: RedbKv::open(&folder.join("pairs.redb")).expect("it opens"),
        restored: Arc::default(),
        commands: Arc::default(),
    }
}

async fn start(
    network: &ChannelNetwork,
    folder: &Path,
    id: u64,
    voters: &[u64],
    machine: Counted,
) -> Result<RaftHandle, StartError> {
    let mut options = RaftOptions::default();
    options.tick = Duration::from_millis(10);
    options.snapshot_entries = 20;
    options.log_entries_kept = 5;
    RaftNode::builder(id)
        .log_store(SegmentLog::open(folder.join("log")).expect("it opens"))
        .transport(network.transport(id))
        .state_machine(Machine::streamed(machine))
        .options(options)
        .bootstrap(voters.iter().copied())
        .start()
        .await
}

async fn alone(folder: &Path, machine: Counted) -> Result<RaftHandle, StartError> {
    let node = start(&ChannelNetwork::new(), folder, 1, &[1], machine).await?;
    node.wait_for_leader(Duration::from_secs(60)).await;
    Ok(node)
}

fn command(key: u64, value: u64) -> Bytes {
    [key.to_be_bytes(), value.to_be_bytes()].concat().into()
}

fn value_of(machine: &RedbKv, key: u64) -> u64 {
    let value = machine.get(&key.to_be_bytes()).expect("it is read");
    value.map_or(0, |value| {
        u64::from_be_bytes(value.try_into().expect("8 bytes"))
    })
}

fn snapshot_files(folder: &Path) -> usize {
    let files = std::fs::read_dir(folder.join("log")).expect("it is there");
    let names = files.map(|file| file.expect("it is there").file_name());
    let is_snapshot = |name: &std::ffi::OsString| name.to_string_lossy().ends_with(".snapshot");
    names.filter(is_snapshot).count()
}

/// The killed process: writes values that grow, and says which are acknowledged.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("it starts");
    runtime.block_on(async {
        let folder = Path::new(&folder);
        let machine = open(folder);
        let pairs = machine.machine.clone();
        let node = alone(folder, machine).await.expect("it starts");
        node.read_index().await.expect("it leads");
        let mut value = (0..7).map(|key| value_of(&pairs, key)).max().unwrap_or(0);
        // Bounded: the parent kills it long before.
        for _ in 0..1_000_000 {
            value += 1;
            node.propose(command(value % 7, value))
                .await
                .expect("it leads");
            println!("acked {value}");
        }
    });
}

/// 8 times, or as often as `PERF_RAFT_KILLS` says.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_killed_has_all_that_was_acknowledged() {
    let kills = std::env::var("PERF_RAFT_KILLS").ok();
    let kills: u64 = kills.map_or(8, |kills| kills.parse().expect("a number"));
    let folder = TempDir::new().expect("a folder");
    let (mut last, mut skipped) = (0, 0);
    for round in 1..=kills {
        let program = std::env::current_exe().expect("this program");
        let mut child = std::process::Command::new(program)
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD_FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let numbers = lines.map_while(Result::ok).filter_map(|line| {
            let number = line.strip_prefix("acked ")?;
            number.parse::<u64>().ok()
        });
        // At another place in each round.
        let until = (20 + round * 37 % 90) as usize;
        let mut numbers = numbers;
        let acked: Vec<u64> = numbers.by_ref().take(until).collect();
        child.kill().expect("it runs");
        // What it said before it died.
        let acked: Vec<u64> = acked.into_iter().chain(numbers).collect();
        child.wait().expect("it is killed");
        assert!(
            acked.len() >= until,
            "round {round}: it was not killed but failed"
        );
        last = acked.into_iter().max().unwrap_or(last).max(last);

        let counted = open(folder.path());
        let node = alone(folder.path(), counted.clone())
            .await
            .expect("it starts");
        node.read_index().await.expect("it leads");
        let mut values = BTreeMap::new();
        for key in 0..7 {
            values.insert(key, value_of(&counted.machine, key));
        }
        // Values grow: the highest of a key is the last. One more may have been applied and not acknowledged.
        for value in last.saturating_sub(6).max(1)..=last {
            let found = values[&(value % 7)];
            assert!(found >= value, "round {round}: {value} is gone: {values:?}");
            assert!(
                found <= last + 1,
                "round {round}: {found} was never written"
            );
        }
        assert_eq!(counted.restored.load(Ordering::SeqCst), 0, "round {round}");
        let applied = counted.commands.load(Ordering::SeqCst);
        skipped += u64::from(applied < last / 2);
        node.shutdown().await;
        assert_eq!(
            snapshot_files(folder.path()),
            0,
            "the machine is the snapshot"
        );
    }
    assert!(
        skipped >= kills / 2,
        "commands are applied again and again: {skipped}"
    );
}

async fn write(node: &RaftHandle, values: std::ops::RangeInclusive<u64>) {
    for value in values {
        let written = node.propose(command(value % 7, value)).await;
        written.expect("it leads");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_gets_a_stream_of_the_machine() {
    let network = ChannelNetwork::new();
    let folders = [(); 2].map(|()| TempDir::new().expect("a folder"));
    let machines = [open(folders[0].path()), open(folders[1].path())];
    let leader = start(&network, folders[0].path(), 1, &[1], machines[0].clone());
    let leader = leader.await.expect("it starts");
    leader.wait_for_leader(Duration::from_secs(60)).await;
    write(&leader, 1..=200).await;
    let peer = start(&network, folders[1].path(), 2, &[], machines[1].clone());
    let peer = peer.await.expect("it starts");
    let add = vec![perf_raft::MembershipChange::AddVoter(2)];
    leader.change_membership(add).await.expect("it is added");
    peer.read_index().await.expect("there is a leader");
    assert_eq!(machines[1].restored.load(Ordering::SeqCst), 1);
    for key in 0..7 {
        assert_eq!(
            value_of(&machines[1].machine, key),
            value_of(&machines[0].machine, key)
        );
    }
    // The log of each is cut at its machine's index again: what was made for the peer goes.
    write(&leader, 201..=300).await;
    let cut = async {
        while folders
            .iter()
            .any(|folder| snapshot_files(folder.path()) > 0)
        {
            write(&leader, 301..=310).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let cut = tokio::time::timeout(Duration::from_secs(60), cut).await;
    cut.expect("no snapshot is kept");
    for node in [peer, leader] {
        node.shutdown().await;
    }
}

/// A machine beyond its log, or before what the log still has, is refused in words that say what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_at_odds_with_its_log_is_refused() {
    let folders = [(); 3].map(|()| TempDir::new().expect("a folder"));
    for folder in &folders[..2] {
        let node = alone(folder.path(), open(folder.path()))
            .await
            .expect("it starts");
        write(&node, 1..=100).await;
        node.shutdown().await;
    }
    // The machine is gone, and the log was cut at its index.
    std::fs::remove_file(folders[0].path().join("pairs.redb")).expect("it is there");
    let behind = alone(folders[0].path(), open(folders[0].path())).await;
    let error = behind.expect_err("the state is gone").to_string();
    assert!(
        error.contains("durable up to 0, and it was up to"),
        "{error}"
    );
    // The log is gone.
    std::fs::remove_dir_all(folders[1].path().join("log")).expect("it is there");
    let beyond = alone(folders[1].path(), open(folders[1].path())).await;
    let error = beyond.expect_err("the log is gone").to_string();
    assert!(error.contains("and the log is empty"), "{error}");
    // The log is of an earlier time than the machine.
    let (early, late) = (TempDir::new().expect("a folder"), open(folders[2].path()));
    let node = alone(early.path(), open(early.path()))
        .await
        .expect("it starts");
    write(&node, 1..=3).await;
    node.shutdown().await;
    let node = alone(folders[2].path(), late).await.expect("it starts");
    write(&node, 1..=9).await;
    node.shutdown().await;
    drop(node);
    let beyond = alone(early.path(), open(folders[2].path())).await;
    let error = beyond.expect_err("the log is too short").to_string();
    assert!(error.contains("and the log ends at"), "{error}");
}
