//! The whole shell of a node (mailbox, combining lock, task, log thread, apply thread, stop) on shuttle's scheduler: thousands of random
//! interleavings, in which clients give up, wakers panic, the state machine stands still, the log fails and the runtime ends.
//!
//! shuttle fails a model in which somebody waits for ever. Each fault that is seeded into the shell must make one of them fail.
//!
//! `RUSTFLAGS="--cfg perf_mutants" cargo test -p perf-raft --all-features --release --test shuttle --target-dir target/mutants`
#![cfg(perf_mutants)]

use bytes::Bytes;
use perf_raft::log::{LogJob, LogState, StoredSnapshot};
use perf_raft::{
    ChannelNetwork, Command, GroupId, LogError, LogStore, MemoryLog, ProposeError, RaftHandle,
    RaftHost, RaftNode, RaftOptions, ReadError, StateMachine, StateMachineError, StopReason,
};
use shuttle::future::block_on;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::{Condvar, Mutex};
use shuttle::{Config, FailurePersistence, Runner, thread};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

const TICK: Duration = Duration::from_millis(10);
/// Many times what any call is documented to take.
const TICKS_MAX: u32 = 2_000;

/// The mutant switch is the process's: one test at a time.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Half of the schedules are random, half have few changes of threads at the worst places (PCT, Burckhardt 2010). `PERF_SHUTTLE_SCHEDULES` takes the place of
/// the number.
fn schedules() -> usize {
    let chosen = std::env::var("PERF_SHUTTLE_SCHEDULES").ok();
    let default = if cfg!(debug_assertions) { 200 } else { 1_000 };
    chosen.and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Whether the model fails with this fault, or with none.
fn fails(mutant: Option<&'static str>, model: fn(&Clock)) -> bool {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    perf_raft::__mutants::set(mutant);
    let schedules = schedules() / 2;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let run = move || {
            let clock = Clock::new();
            let _entered = clock.0.enter();
            model(&clock);
        };
        Runner::new(RandomScheduler::new_from_seed(7, schedules), config()).run(run);
        Runner::new(PctScheduler::new_from_seed(7, 3, schedules), config()).run(run);
    }));
    perf_raft::__mutants::set(None);
    outcome.is_err()
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    config
}

/// The node's time. It stands still but for [`tick`](Self::tick).
struct Clock(tokio::runtime::Runtime);

impl Clock {
    fn new() -> Self {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build();
        Self(runtime.expect("a runtime"))
    }

    fn tick(&self) {
        self.0.block_on(tokio::time::advance(TICK));
        thread::yield_now();
    }

    /// Lets time pass until all have ended. A call that waits longer than any bound fails the model.
    fn until_ended(&self, clients: Vec<Client>) {
        for client in clients {
            self.until("a client waits for ever", &client.has_ended);
            client.thread.join().expect("no client panics");
        }
    }

    fn until(&self, otherwise: &str, flag: &AtomicBool) {
        let mut ticks = 0;
        while !flag.load(Ordering::Relaxed) {
            ticks += 1;
            assert!(ticks < TICKS_MAX, "{otherwise}");
            self.tick();
        }
    }
}

/// A thread that uses a node.
struct Client {
    thread: thread::JoinHandle<()>,
    has_ended: Arc<AtomicBool>,
}

impl Client {
    fn spawn(work: impl FnOnce() + Send + 'static) -> Self {
        let has_ended = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&has_ended);
        let thread = thread::spawn(move || {
            work();
            flag.store(true, Ordering::Relaxed);
        });
        Self { thread, has_ended }
    }
}

/// What of a node is still alive, and what it did.
#[derive(Default)]
struct Traces {
    machine_dropped: AtomicBool,
    log_dropped: AtomicBool,
    applied: AtomicU64,
}

/// A door that stops a state machine until it is opened.
#[derive(Default)]
struct Door {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Door {
    fn open(&self) {
        *self.is_open.lock().expect("no panic") = true;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let mut is_open = self.is_open.lock().expect("no panic");
        while !*is_open {
            is_open = self.opened.wait(is_open).expect("no panic");
        }
    }
}

/// Answers each command with itself.
struct Echo {
    traces: Arc<Traces>,
    door: Option<Arc<Door>>,
}

impl StateMachine for Echo {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        if let Some(door) = &self.door {
            door.pass();
        }
        self.traces
            .applied
            .fetch_add(batch.len() as u64, Ordering::Relaxed);
        responses.extend(batch.iter().map(|command| command.data.clone()));
    }

    fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
        Ok(Bytes::from_static(b"echo"))
    }

    fn restore(&mut self, _: Bytes) -> Result<(), StateMachineError> {
        Ok(())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.traces.machine_dropped.store(true, Ordering::Relaxed);
    }
}

/// In memory, with a thread of its own as if it were on a disk, which fails at the given write.
struct Disk {
    log: MemoryLog,
    traces: Arc<Traces>,
    fails_after: u32,
}

impl LogStore for Disk {
    fn load(&mut self, group: GroupId) -> Result<Option<LogState>, LogError> {
        self.log.load(group)
    }

    fn save_snapshot(&mut self, group: GroupId, snapshot: &StoredSnapshot) -> Result<(), LogError> {
        self.log.save_snapshot(group, snapshot)
    }

    fn write(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), LogError> {
        self.fails_after -= 1;
        if self.fails_after == 0 {
            return Err(LogError::Sync {
                file: "log".into(),
                reason: "the model says so".to_owned(),
            });
        }
        self.log.write(jobs, sync)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.traces.log_dropped.store(true, Ordering::Relaxed);
    }
}

/// The only node of its group.
struct Node {
    handle: RaftHandle,
    traces: Arc<Traces>,
}

impl Node {
    fn start(fails_after: u32, door: Option<Arc<Door>>) -> Self {
        let traces = Arc::new(Traces::default());
        let disk = Disk {
            log: MemoryLog::new(),
            traces: Arc::clone(&traces),
            fails_after,
        };
        let machine = Echo {
            traces: Arc::clone(&traces),
            door,
        };
        let mut options = RaftOptions::default();
        options.tick = TICK;
        let started = RaftNode::builder(1)
            .options(options)
            .log_store(disk)
            .transport(ChannelNetwork::new().transport(1))
            .state_machine(machine)
            .bootstrap([1])
            .start();
        let handle = block_on(started).expect("a sound start");
        Self { handle, traces }
    }

    fn spawn(&self, client: impl FnOnce(RaftHandle) + Send + 'static) -> Client {
        let handle = self.handle.clone();
        Client::spawn(move || client(handle))
    }

    /// Nothing of the node runs any more.
    fn check_ended(&self) {
        let is_dropped = |dropped: &AtomicBool| dropped.load(Ordering::Relaxed);
        assert!(
            is_dropped(&self.traces.machine_dropped),
            "the state machine outlives its node"
        );
        assert!(
            is_dropped(&self.traces.log_dropped),
            "the log outlives its node"
        );
        let late = block_on(self.handle.propose(Bytes::from_static(b"late")));
        assert!(matches!(late, Err(ProposeError::Stopped(_))), "{late:?}");
        let late = block_on(self.handle.read_index());
        assert!(matches!(late, Err(ReadError::Stopped(_))), "{late:?}");
    }
}

/// Proposes until the command is applied. Tells whether it ended so, and not by the end of the node.
fn propose(handle: &RaftHandle, command: &'static [u8]) -> bool {
    loop {
        match block_on(handle.propose(Bytes::from_static(command))) {
            Ok(response) => {
                assert_eq!(response, command, "another's answer");
                return true;
            }
            Err(ProposeError::NotLeader { .. } | ProposeError::NotFormed { .. }) => {
                thread::yield_now();
            }
            Err(ProposeError::Stopped(_) | ProposeError::Unknown) => return false,
            Err(other) => panic!("{other}"),
        }
    }
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        std::panic::resume_unwind(Box::new("a client's waker"));
    }
}

/// Polls once, with this waker, and gives up.
fn poll_once<T>(future: impl Future<Output = T>, waker: &Waker) {
    let mut future = pin!(future);
    let _ = future.as_mut().poll(&mut Context::from_waker(waker));
}

/// Polls once, and leaves the future where it is until the node is gone.
fn leave<T: 'static>(future: impl Future<Output = T> + 'static, waker: &Waker) -> impl Sized {
    let mut future = Box::pin(future);
    let _ = future.as_mut().poll(&mut Context::from_waker(waker));
    future
}

/// Clients of every kind, and those who give up; then the end.
fn clients(clock: &Clock) {
    let node = Node::start(u32::MAX, None);
    let writer = node.spawn(|handle| {
        for command in [b"a1", b"a2", b"a3"] {
            assert!(propose(&handle, command), "the node lives");
        }
    });
    let batcher = node.spawn(|handle| {
        assert!(propose(&handle, b"b"), "the node lives");
        let batch = vec![Bytes::from_static(b"b1"), Bytes::from_static(b"b2")];
        let results = block_on(handle.propose_batch(batch)).expect("it leads");
        assert_eq!(results, [Ok("b1".into()), Ok("b2".into())]);
    });
    let reader = node.spawn(|handle| {
        poll_once(
            handle.propose(Bytes::from_static(b"gives up")),
            Waker::noop(),
        );
        poll_once(handle.read_index(), Waker::noop());
        assert!(propose(&handle, b"c"), "the node lives");
        let index = block_on(handle.read_index()).expect("it leads");
        assert!(index > 0 && handle.status().applied_index >= index);
        poll_once(handle.snapshot(), Waker::noop());
        block_on(handle.snapshot()).expect("the machine makes one");
    });
    let waker = Waker::from(Arc::new(Panics));
    let asker = node.handle.clone();
    let _waits = leave(
        async move { asker.propose(Bytes::from_static(b"panics")).await },
        &waker,
    );
    clock.until_ended(vec![writer, batcher, reader]);
    assert!(node.traces.applied.load(Ordering::Relaxed) >= 7);
    block_on(node.handle.shutdown());
    node.check_ended();
}

/// The node is told to stop while clients propose and its state machine stands still. Somebody opens the door some time.
fn blocked_machine(clock: &Clock) {
    let door = Arc::new(Door::default());
    let node = Node::start(u32::MAX, Some(Arc::clone(&door)));
    let mut threads = vec![
        node.spawn(|handle| {
            propose(&handle, b"a1");
            propose(&handle, b"a2");
        }),
        node.spawn(|handle| {
            let _ = block_on(handle.read_index());
            propose(&handle, b"b");
        }),
        Client::spawn(move || door.open()),
    ];
    threads.push(node.spawn(|handle| {
        block_on(handle.shutdown());
        // A second time: it has ended.
        block_on(handle.shutdown());
    }));
    clock.until_ended(threads);
    node.check_ended();
    assert_eq!(block_on(node.handle.stopped()), StopReason::Shutdown);
}

/// The log fails at its fourth write. All who wait learn it.
fn failing_log(clock: &Clock) {
    let node = Node::start(4, None);
    let client = |handle: RaftHandle| {
        while propose(&handle, b"a") {}
        let _ = block_on(handle.snapshot());
        let _ = block_on(handle.read_index());
    };
    let threads = vec![node.spawn(client), node.spawn(client)];
    clock.until_ended(threads);
    let reason = block_on(node.handle.stopped());
    assert!(matches!(reason, StopReason::Log(_)), "{reason:?}");
    node.check_ended();
}

/// The runtime ends under the node. All who wait are answered, and log and state machine end by themselves.
fn runtime_ends(clock: &Clock) {
    let node = Node::start(u32::MAX, None);
    let client = |handle: RaftHandle| {
        let _ = propose(&handle, b"a") && propose(&handle, b"b");
        let _ = block_on(handle.read_index());
        block_on(handle.shutdown());
    };
    let mut threads = vec![node.spawn(client), node.spawn(client)];
    threads.push(Client::spawn(perf_raft::__shuttle::end_runtime));
    clock.until_ended(threads);
    let traces = &node.traces;
    clock.until(
        "the state machine outlives its node",
        &traces.machine_dropped,
    );
    clock.until("the log outlives its node", &traces.log_dropped);
}

/// Two groups of a host, with one task, one thread for the log and one for the state machines. One group is closed and removed while clients use both; then the
/// host is shut down.
fn host_of_two(clock: &Clock) {
    let traces = [Arc::new(Traces::default()), Arc::new(Traces::default())];
    let of_log = Arc::new(Traces::default());
    let disk = Disk {
        log: MemoryLog::new(),
        traces: Arc::clone(&of_log),
        fails_after: u32::MAX,
    };
    let mut options = RaftOptions::default();
    options.tick = TICK;
    let started = RaftHost::builder(1)
        .options(options)
        .log_store(disk)
        .transport(ChannelNetwork::new().transport(1))
        .drivers(1)
        .apply_threads(1)
        .start();
    let host = block_on(started).expect("a sound start");
    let mut threads = Vec::new();
    for (group, traces) in (1..).map(GroupId).zip(&traces) {
        let machine = Echo {
            traces: Arc::clone(traces),
            door: None,
        };
        let handle = block_on(host.create_group(group, machine, [1])).expect("a new group");
        threads.push(Client::spawn(move || {
            let is_closed = !(propose(&handle, b"a1") && propose(&handle, b"a2"));
            assert!(!is_closed || group == GroupId(2), "nobody closed the first");
            let _ = block_on(handle.read_index());
        }));
    }
    let its = host.clone();
    threads.push(Client::spawn(move || {
        block_on(its.close_group(GroupId(2))).expect("nobody else closes it");
        block_on(its.remove_group(GroupId(2))).expect("the log is sound");
    }));
    clock.until_ended(threads);
    assert_eq!(traces[0].applied.load(Ordering::Relaxed), 2);
    assert!(traces[1].machine_dropped.load(Ordering::Relaxed));
    // From here on no tick helps: a notification that is lost stays lost.
    let first = host.group(GroupId(1)).expect("it is open");
    let client = thread::spawn(move || {
        assert!(propose(&first, b"a3") && propose(&first, b"a4"), "it leads");
    });
    client.join().expect("no client panics");
    assert_eq!(traces[0].applied.load(Ordering::Relaxed), 4);
    block_on(host.shutdown());
    assert!(traces[0].machine_dropped.load(Ordering::Relaxed));
    assert!(
        of_log.log_dropped.load(Ordering::Relaxed),
        "the log outlives its host"
    );
}

#[test]
fn groups_of_a_host_are_served_and_end_one_by_one() {
    assert!(!fails(None, host_of_two));
}

#[test]
fn a_turn_that_begins_too_late_is_found() {
    assert!(fails(Some("turn_begins_late"), host_of_two));
}

#[test]
fn jobs_that_the_pool_forgets_are_found() {
    assert!(fails(Some("apply_queue_forgets_jobs"), host_of_two));
}

#[test]
fn every_call_is_answered_and_a_shutdown_ends_all() {
    assert!(!fails(None, clients));
}

#[test]
fn a_shutdown_waits_for_a_state_machine_that_stands_still() {
    assert!(!fails(None, blocked_machine));
}

#[test]
fn a_log_that_fails_ends_the_node_and_answers_all() {
    assert!(!fails(None, failing_log));
}

#[test]
fn a_runtime_that_ends_leaves_nobody_waiting() {
    assert!(!fails(None, runtime_ends));
}

#[test]
fn a_request_without_notification_is_found() {
    assert!(fails(Some("request_without_notification"), clients));
}

#[test]
fn a_waker_whose_panic_goes_through_is_found() {
    assert!(fails(Some("waker_panics_through"), clients));
}

#[test]
fn a_state_machine_that_outlives_its_node_is_found() {
    assert!(fails(Some("machine_outlives_node"), blocked_machine));
}

#[test]
fn proposals_that_the_end_does_not_answer_are_found() {
    assert!(fails(Some("closed_and_not_answered"), blocked_machine));
}

#[test]
fn an_answer_whose_waker_is_forgotten_is_found() {
    assert!(fails(Some("slot_forgets_waker"), clients));
}
