//! The state of a group's node that its handles, its transport and its task share.

use super::combining_lock::{CombiningLock, DriveOutcome};
use super::drive::Driver;
use super::mailbox::{Mailbox, Next};
use crate::primitive::threads::thread_local;
use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use tokio::runtime::{Handle, Id};

/// Turns that a caller drives before it leaves the rest to the node's task: two for a proposal in a group of one process, and some for what comes
/// meanwhile.
const TURNS_OF_A_CALLER: u32 = 4;

thread_local! {
    /// The runtime on whose thread a caller drives a node, while it does. What that node sends to others of the runtime it drives as well.
    static BY_CALLER: Cell<Option<Id>> = const { Cell::new(None) };
}

/// A node's mailbox, and its driver behind a combining lock.
pub(crate) struct NodeShared {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) driver: CombiningLock<Driver>,
    /// The runtime on which the node was started.
    runtime: Id,
}

impl fmt::Debug for NodeShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mailbox.fmt(f)
    }
}

impl NodeShared {
    /// With nothing to drive yet.
    pub(crate) fn new(mailbox: Arc<Mailbox>, runtime: Id) -> Self {
        Self {
            mailbox,
            driver: CombiningLock::empty(),
            runtime,
        }
    }

    /// Gets the work driven that the caller has just queued.
    pub(crate) fn drive_next(&self, next: Next) {
        match next {
            Next::Notified => {}
            Next::Task => self.mailbox.notify(),
            Next::Caller => self.drive(),
        }
    }

    /// Gets a message driven that came from another node of this process.
    pub(crate) fn drive_or_notify(&self) {
        if BY_CALLER.with(Cell::get) == Some(self.runtime) {
            self.drive_here();
        } else {
            self.mailbox.notify();
        }
    }

    /// Drives the node in the caller's own task, if no other thread is driving it.
    ///
    /// Callers on other runtimes, or on none, leave it to the node's task: transport, log and state machine are used on the runtime where the node was started.
    fn drive(&self) {
        let is_at_home = Handle::try_current().is_ok_and(|here| here.id() == self.runtime);
        if is_at_home {
            let outer = BY_CALLER.with(|by| by.replace(Some(self.runtime)));
            self.drive_here();
            BY_CALLER.with(|by| by.set(outer));
        } else {
            self.mailbox.notify();
        }
    }

    fn drive_here(&self) {
        let outcome = self
            .driver
            .drive(TURNS_OF_A_CALLER, |driver| driver.drive(None));
        if outcome == DriveOutcome::More {
            self.mailbox.notify();
        }
    }
}
