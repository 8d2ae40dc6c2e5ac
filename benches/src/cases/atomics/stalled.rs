//! A status query while the writer of the status is stopped in the middle of a change.
//!
//! On a machine with more threads than cores this is what preemption does to whoever holds a lock.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use perf_atomics::{RaftStatus, Snapshot};
use tokio::sync::RwLock;

use super::{case, runtime, shared, status, use_status};
use crate::case::{Case, Run};

/// How long the writer is stopped.
const STALL: Duration = Duration::from_millis(5);

/// Told by the writer, from inside its change, that it is stopped now.
type Stopped = SyncSender<()>;

pub(super) fn status_snapshot() -> Case {
    case(
        ("atomics/status_snapshot_stalled", 2),
        "a status query while the writer is stopped for 5 ms in the middle of a change",
        || {
            let lock = shared(RwLock::new(status()));
            let (readers, writers) = (runtime(), runtime());
            stalled(
                move |stopped| {
                    let mut status = writers.block_on(lock.write());
                    stop_within(&mut status, stopped);
                },
                move || use_status(&readers.block_on(lock.read())),
            )
        },
        || {
            let snapshot = shared(Snapshot::new(status()));
            stalled(
                move |stopped| {
                    snapshot.update(|status| stop_within(status, stopped));
                },
                move || use_status(&snapshot.read()),
            )
        },
        peers(),
        &[("before", 5_000.0)],
    )
}

#[cfg(feature = "peers")]
fn peers() -> Vec<crate::case::Path> {
    use crate::case::path;
    vec![
        path("parking_lot", || {
            let lock = shared(parking_lot::RwLock::new(status()));
            stalled(
                move |stopped| stop_within(&mut lock.write(), stopped),
                move || use_status(&lock.read()),
            )
        }),
        path("arc-swap", || {
            let swap = shared(arc_swap::ArcSwap::from_pointee(status()));
            stalled(
                move |stopped| {
                    swap.rcu(|status| {
                        let mut status = **status;
                        stop_within(&mut status, stopped);
                        status
                    });
                },
                move || use_status(&swap.load()),
            )
        }),
    ]
}

#[cfg(not(feature = "peers"))]
fn peers() -> Vec<crate::case::Path> {
    Vec::new()
}

/// A change that takes the whole stall.
fn stop_within(status: &mut RaftStatus, stopped: &Stopped) {
    status.commit_index += 1;
    // The reader may be gone when the benchmark ends early.
    let _ = stopped.send(());
    thread::sleep(STALL);
}

/// One operation is one read that begins while the writer is stopped.
fn stalled(
    mut change: impl FnMut(&Stopped) + Send + 'static,
    mut read: impl FnMut() -> u64 + 'static,
) -> Run {
    // The writer's thread ends when the path is dropped, which closes `orders`.
    let (orders, inbox) = sync_channel::<()>(1);
    let (stopped, is_stopped) = sync_channel::<()>(1);
    let (ended, has_ended) = sync_channel::<()>(1);
    thread::spawn(move || {
        while inbox.recv().is_ok() {
            change(&stopped);
            if ended.send(()).is_err() {
                return;
            }
        }
    });
    Box::new(move |iters| {
        let mut time = Duration::ZERO;
        for _ in 0..iters {
            let ordered = orders.send(()).is_ok() && is_stopped.recv().is_ok();
            assert!(ordered, "the writer's thread is gone");
            let start = Instant::now();
            std::hint::black_box(read());
            time += start.elapsed();
            assert!(has_ended.recv().is_ok(), "the writer's thread is gone");
        }
        time
    })
}
