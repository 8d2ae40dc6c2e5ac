//! One store for several groups: writes that wait go together, errors reach all, and nodes of several groups live in one folder.
#![cfg(feature = "testing")]

mod segments;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use perf_raft::log::testing::{History, Model, SimDisk};
use perf_raft::log::{LogJob, LogState, LogStore, SegmentLog, SharedLog, StoredSnapshot, run_jobs};
use perf_raft::{
    ApplyMode, ChannelNetwork, Command, GroupId, LogError, RaftHandle, RaftNode, StateMachine,
    StateMachineError,
};
use segments::{GROUPS, differs, open, options};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// How many jobs each write had, and what the next ones do.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    writes: Vec<usize>,
    is_closed: bool,
    outcome: Outcome,
}

#[derive(Clone, Copy, Default)]
enum Outcome {
    #[default]
    Done,
    Fails,
    Panics,
}

/// A store whose writes wait at a gate.
struct Gated(Arc<Gate>);

impl LogStore for Gated {
    fn load(&mut self, _: GroupId) -> Result<Option<LogState>, LogError> {
        Ok(None)
    }

    fn save_snapshot(&mut self, _: GroupId, _: &StoredSnapshot) -> Result<(), LogError> {
        Ok(())
    }

    fn write(&mut self, jobs: &[LogJob], _: bool) -> Result<(), LogError> {
        let mut state = self.0.state.lock();
        state.writes.push(jobs.len());
        self.0.changed.notify_all();
        while state.is_closed {
            self.0.changed.wait(&mut state);
        }
        match state.outcome {
            Outcome::Done => Ok(()),
            Outcome::Fails => Err(failure()),
            Outcome::Panics => panic!("on purpose"),
        }
    }
}

fn failure() -> LogError {
    LogError::Unsupported {
        reason: "on purpose".to_owned(),
    }
}

impl Gate {
    fn close() -> Arc<Self> {
        let gate = Self::default();
        gate.state.lock().is_closed = true;
        Arc::new(gate)
    }

    fn open(&self, outcome: Outcome) {
        let mut state = self.state.lock();
        (state.is_closed, state.outcome) = (false, outcome);
        self.changed.notify_all();
    }

    /// Waits until so many writes have begun.
    fn wait(&self, writes: usize) {
        let mut state = self.state.lock();
        while state.writes.len() < writes {
            self.changed.wait(&mut state);
        }
    }
}

fn job(group: u64) -> LogJob {
    LogJob {
        group: GroupId(group),
        ..LogJob::default()
    }
}

/// What a writer gets; `None` for a panic.
type Answer = Option<Result<(), LogError>>;

/// One write is under way, and five more wait; then the gate opens. Returns what all get, the first one before the others, and how many jobs
/// each write had.
fn six_writers(outcome: Outcome) -> (Vec<Answer>, Vec<usize>, SharedLog) {
    let gate = Gate::close();
    let log = SharedLog::new(Gated(Arc::clone(&gate)));
    let write = |group| {
        let mut log = log.clone();
        thread::spawn(move || {
            catch_unwind(AssertUnwindSafe(|| log.write(&[job(group)], true))).ok()
        })
    };
    let mut writers = vec![write(0)];
    gate.wait(1);
    writers.extend((1..6).map(write));
    while log.waiting() < 5 {
        thread::yield_now();
    }
    gate.open(outcome);
    let answers = writers
        .into_iter()
        .map(|writer| writer.join().expect("caught"));
    let answers = answers.collect();
    let writes = gate.state.lock().writes.clone();
    (answers, writes, log)
}

#[test]
fn jobs_that_wait_are_one_write() {
    let (answers, writes, _) = six_writers(Outcome::Done);
    assert_eq!(answers, vec![Some(Ok(())); 6]);
    assert_eq!(writes, [1, 5]);
}

#[test]
fn an_error_reaches_all_and_stays() {
    let (answers, writes, mut log) = six_writers(Outcome::Fails);
    assert_eq!(answers, vec![Some(Err(failure())); 6]);
    assert_eq!(writes, [1]);
    assert_eq!(log.write(&[job(1)], true), Err(failure()));
    let saved = log.save_snapshot(GroupId(1), &StoredSnapshot::default());
    assert_eq!(saved, Err(failure()));
}

#[test]
fn a_panic_of_the_store_reaches_all() {
    let (answers, writes, _) = six_writers(Outcome::Panics);
    assert_eq!(answers[0], None, "the panic is the writer's");
    for answer in &answers[1..] {
        let is_told = matches!(answer, Some(Err(error)) if error.to_string().contains("panicked"));
        assert!(is_told, "{answer:?}");
    }
    assert_eq!(writes, [1]);
}

/// Each thread has a group of its own; together they hold what each wrote.
#[test]
fn groups_that_write_at_once_do_not_disturb_each_other() {
    let disk = SimDisk::new(4);
    let log = SharedLog::new(open(&disk, &options(4096)).expect("a new log"));
    let writers: Vec<_> = (1..=GROUPS)
        .map(|group| {
            let mut log = log.clone();
            thread::spawn(move || {
                let mut history = History::new(group, 1, 100);
                let mut state = LogState::default();
                for _ in 0..200 {
                    let mut model = Model::default();
                    model.set(GroupId(1), state.clone());
                    let mut jobs = history.next_jobs(&model);
                    jobs.iter_mut().for_each(|job| job.group = GroupId(group));
                    run_jobs(&mut log, &mut jobs).expect("a sound disk");
                    jobs.iter().for_each(|job| state.apply(job));
                }
                state
            })
        })
        .collect();
    let mut model = Model::default();
    for (group, writer) in (1..).zip(writers) {
        model.set(GroupId(group), writer.join().expect("no panic"));
    }
    assert_eq!(log.all_groups(), Ok((1..=GROUPS).map(GroupId).collect()));
    drop(log);
    disk.crash();
    let mut log = open(&disk, &options(4096)).expect("a sound log");
    assert_eq!(differs(&mut log, &model), Ok(None));
}

/// Keeps what was proposed.
struct Kept(Arc<Mutex<BTreeMap<u64, Vec<Bytes>>>>, u64);

impl StateMachine for Kept {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        let mut kept = self.0.lock();
        for command in batch {
            kept.entry(self.1).or_default().push(command.data.clone());
            responses.push(Bytes::new());
        }
    }

    fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
        Ok(Bytes::new())
    }

    fn restore(&mut self, _: Bytes) -> Result<(), StateMachineError> {
        self.0.lock().remove(&self.1);
        Ok(())
    }
}

async fn start(
    log: &SharedLog,
    group: u64,
    kept: &Arc<Mutex<BTreeMap<u64, Vec<Bytes>>>>,
) -> RaftHandle {
    let mut options = perf_raft::RaftOptions::default();
    options.apply = ApplyMode::Inline;
    let node = RaftNode::builder(1)
        .group(GroupId(group))
        .log_store(log.clone())
        .transport(ChannelNetwork::new().transport(1))
        .state_machine(Kept(Arc::clone(kept), group))
        .options(options)
        .bootstrap([1])
        .start()
        .await
        .expect("a sound log");
    let leader = node.wait_for_leader(Duration::from_secs(60)).await;
    assert_eq!(leader, Some(1));
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_several_groups_live_in_one_folder() {
    let folder = TempDir::new().expect("a temporary folder");
    let proposals = |group: u64| (0..20_u64).map(move |count| format!("{group}: {count}"));
    for round in 0..2 {
        let log = SharedLog::new(SegmentLog::open(folder.path()).expect("a sound log"));
        let kept = Arc::default();
        let mut nodes = Vec::new();
        for group in 1..=4 {
            let node = start(&log, group, &kept).await;
            node.read_index().await.expect("it leads");
            nodes.push(node);
        }
        if round == 0 {
            for (group, node) in (1..).zip(&nodes) {
                for proposal in proposals(group) {
                    node.propose(Bytes::from(proposal)).await.expect("it leads");
                }
            }
        }
        for node in nodes {
            node.shutdown().await;
        }
        for group in 1..=4 {
            let expected: Vec<Bytes> = proposals(group).map(Bytes::from).collect();
            assert_eq!(kept.lock().get(&group), Some(&expected), "round {round}");
        }
    }
}
