//! A node's own task: drives the node at each tick, when it is notified, and as long as work remains.

use super::combining_lock::DriveOutcome;
use super::shared::NodeShared;
use crate::error::StopReason;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Stops the node if its runtime ends: then no part of the node outlives its task, and no caller waits for it.
struct ShutdownGuard(Arc<NodeShared>);

impl Drop for ShutdownGuard {
    fn drop(&mut self) {
        if let Some(driver) = self.0.driver.take() {
            self.0.mailbox.close(&StopReason::Shutdown);
            // Answers what it holds.
            drop(driver);
        }
    }
}

/// Drives a node until it is told to stop or cannot go on. `tick` is the node's. Dropped at any time, also before it is polled, it stops the node.
pub(crate) fn run(shared: Arc<NodeShared>, tick: Duration) -> impl Future<Output = ()> {
    let guard = ShutdownGuard(shared);
    async move { drive(&guard.0, tick).await }
}

async fn drive(shared: &NodeShared, tick: Duration) {
    let mut alarm = pin!(sleep_until(Instant::now() + tick));
    let mut more = true;
    let mut has_failed = false;
    while !has_failed {
        if more {
            tokio::task::yield_now().await;
        } else {
            tokio::select! {
                biased;
                () = &mut alarm => {}
                () = shared.mailbox.notified() => {}
            }
        }
        let mut due = alarm.deadline();
        let outcome = shared.driver.drive(1, |driver| {
            let more = driver.drive();
            due = driver.due;
            has_failed = driver.failed.is_some();
            more
        });
        more = outcome == DriveOutcome::More;
        if outcome == DriveOutcome::Taken && alarm.is_elapsed() {
            // A caller drives. It looks again, and sees that it is time.
            due = Instant::now() + tick;
        }
        if due != alarm.deadline() {
            alarm.as_mut().reset(due);
        }
    }
    if let Some(driver) = shared.driver.take() {
        driver.stop().await;
    }
}
