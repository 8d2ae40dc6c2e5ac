//! Callers that are alone drive their node themselves.

mod common;

use bytes::Bytes;
use common::{Cluster, Map, options};
use perf_raft::{
    ApplyMode, ChannelNetwork, Command, MemoryLog, ProposeError, RaftHandle, RaftNode, RaftOptions,
    StateMachine, StateMachineError, StopReason,
};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

fn inline() -> RaftOptions {
    let mut options = options();
    options.apply = ApplyMode::Inline;
    options
}

fn command(number: u64) -> Bytes {
    Bytes::from(format!("k{} {number}", number % 7))
}

/// Polls once: whether a proposal has its answer without anybody else having been given a turn.
fn has_answer_at_once(proposal: impl Future) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    pin!(proposal).poll(&mut context).is_ready()
}

/// Proposes until the caller counts as alone.
async fn be_alone(leader: &RaftHandle) {
    for number in 0..16 {
        leader.propose(command(number)).await.expect("a leader");
    }
}

/// A node that is a group of its own, once it leads.
async fn single(machine: impl StateMachine) -> RaftHandle {
    let node = RaftNode::builder(1)
        .log_store(MemoryLog::new())
        .transport(ChannelNetwork::new().transport(1))
        .state_machine(machine)
        .options(inline())
        .bootstrap([1])
        .start()
        .await
        .expect("it starts");
    while !node.status().is_leader() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node
}

#[tokio::test]
async fn a_lone_callers_proposal_needs_no_turn_of_any_task() {
    let cluster = Cluster::start(&[1, 2, 3], inline()).await;
    let leader = cluster.leader().await;
    be_alone(&leader).await;
    assert!(has_answer_at_once(leader.propose(command(16))));
    cluster.stop().await;
}

#[tokio::test]
async fn a_caller_with_company_leaves_its_proposal_to_the_task() {
    let cluster = Cluster::start(&[1, 2, 3], inline()).await;
    let leader = cluster.leader().await;
    for number in 0..16 {
        let (one, other) = tokio::join!(
            leader.propose(command(number)),
            leader.propose(command(number))
        );
        one.expect("a leader");
        other.expect("a leader");
    }
    assert!(!has_answer_at_once(leader.propose(command(1))));
    cluster.stop().await;
}

#[tokio::test]
async fn a_caller_that_never_waits_lets_others_have_their_turn() {
    let cluster = Cluster::start(&[1], inline()).await;
    let leader = cluster.leader().await;
    be_alone(&leader).await;
    let had_turn = Arc::new(AtomicBool::new(false));
    let sign = Arc::clone(&had_turn);
    let other = tokio::spawn(async move { sign.store(true, Ordering::Relaxed) });
    for number in 0..1000 {
        leader.propose(command(number)).await.expect("a leader");
    }
    assert!(had_turn.load(Ordering::Relaxed));
    other.await.expect("no panic");
    cluster.stop().await;
}

struct Unparker(Thread);

impl Wake for Unparker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits on a thread that belongs to no runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unparker(thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park();
    }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .expect("the system gives a thread")
}

#[test]
fn callers_of_other_runtimes_and_of_none_get_their_answers() {
    /// Remembers whether it ran anywhere else than on the node's runtime.
    struct Homesick(tokio::runtime::Id, Arc<AtomicBool>);

    impl StateMachine for Homesick {
        fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
            let here = tokio::runtime::Handle::try_current().map(|here| here.id());
            if here.ok() != Some(self.0) {
                self.1.store(true, Ordering::Relaxed);
            }
            responses.extend(batch.iter().map(|command| command.data.clone()));
        }

        fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
            Ok(Bytes::new())
        }

        fn restore(&mut self, _: Bytes) -> Result<(), StateMachineError> {
            Ok(())
        }
    }

    let (home, abroad) = (runtime(), runtime());
    let was_abroad = Arc::new(AtomicBool::new(false));
    let leader = home.block_on(async {
        let node = single(Homesick(home.handle().id(), Arc::clone(&was_abroad))).await;
        be_alone(&node).await;
        node
    });
    for number in 0..32 {
        let response = abroad.block_on(leader.propose(command(number)));
        assert_eq!(response, Ok(command(number)));
        let response = block_on(leader.propose(command(number)));
        assert_eq!(response, Ok(command(number)));
    }
    assert!(!was_abroad.load(Ordering::Relaxed));
    home.block_on(leader.shutdown());
}

#[test]
fn a_node_whose_runtime_ended_says_so() {
    let home = runtime();
    let leader = home.block_on(async {
        let cluster = Cluster::start(&[1], inline()).await;
        let leader = cluster.leader().await;
        be_alone(&leader).await;
        leader
    });
    drop(home);
    assert_eq!(
        block_on(leader.propose(command(1))),
        Err(ProposeError::Stopped(StopReason::Shutdown))
    );
    assert_eq!(block_on(leader.stopped()), StopReason::Shutdown);
}

#[tokio::test]
async fn a_state_machine_that_fails_under_a_caller_stops_the_node() {
    struct Fragile(Map, Arc<AtomicBool>);

    impl StateMachine for Fragile {
        fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
            assert!(!self.1.load(Ordering::Relaxed), "out of order");
            self.0.apply(batch, responses);
        }

        fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
            self.0.snapshot()
        }

        fn restore(&mut self, snapshot: Bytes) -> Result<(), StateMachineError> {
            self.0.restore(snapshot)
        }
    }

    let breaks = Arc::new(AtomicBool::new(false));
    let node = single(Fragile(Map::default(), Arc::clone(&breaks))).await;
    be_alone(&node).await;
    breaks.store(true, Ordering::Relaxed);
    // It may have been applied in part.
    assert_eq!(node.propose(command(1)).await, Err(ProposeError::Unknown));
    let reason = node.stopped().await;
    assert!(
        matches!(&reason, StopReason::StateMachine(text) if text.contains("out of order")),
        "{reason:?}"
    );
    let refused = node.propose(command(2)).await;
    assert_eq!(refused, Err(ProposeError::Stopped(reason)));
}
