//! A node's own task: drives the node when it is time, when the bell rings, and as long as there is more to do.

use super::helm::Helm;
use super::seat::Visit;
use crate::error::StopReason;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// The runtime may end without a word. Then nothing of the node outlives its task, and nobody waits for it.
struct Tenure(Arc<Helm>);

impl Drop for Tenure {
    fn drop(&mut self) {
        if let Some(driver) = self.0.seat.take() {
            self.0.mailbox.close(&StopReason::Shutdown);
            // Answers what it holds.
            drop(driver);
        }
    }
}

/// Sees to a node until it is told to stop or cannot go on. `tick` is the node's.
pub(crate) async fn run(helm: Arc<Helm>, tick: Duration) {
    let tenure = Tenure(helm);
    let helm = &*tenure.0;
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
                () = helm.mailbox.rung() => {}
            }
        }
        let mut due = alarm.deadline();
        let visit = helm.seat.visit(1, |driver| {
            let more = driver.drive();
            due = driver.due;
            has_failed = driver.failed.is_some();
            more
        });
        more = visit == Visit::More;
        if visit == Visit::Taken && alarm.is_elapsed() {
            // A caller drives. It looks again, and sees that it is time.
            due = Instant::now() + tick;
        }
        if due != alarm.deadline() {
            alarm.as_mut().reset(due);
        }
    }
    if let Some(driver) = helm.seat.take() {
        driver.stop().await;
    }
}
