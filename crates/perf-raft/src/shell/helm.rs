//! What clients and peers share of a node: its mailbox, and the seat of whoever drives it.

use super::drive::Driver;
use super::mailbox::{Mailbox, Next};
use super::seat::{Seat, Visit};
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

/// A node's mailbox, and the seat of whoever drives the node.
pub(crate) struct Helm {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) seat: Seat<Driver>,
    /// The runtime on which the node was started.
    runtime: Id,
}

impl fmt::Debug for Helm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mailbox.fmt(f)
    }
}

impl Helm {
    /// A helm of the present runtime, with nothing to drive yet.
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self {
            mailbox,
            seat: Seat::empty(),
            runtime: Handle::current().id(),
        }
    }

    /// Sees to what the caller has just queued.
    pub(crate) fn see_to(&self, next: Next) {
        match next {
            Next::Told => {}
            Next::Task => self.mailbox.ring(),
            Next::Caller => self.drive(),
        }
    }

    /// Sees to a message from another node of this process.
    pub(crate) fn drive_along(&self) {
        if BY_CALLER.get() == Some(self.runtime) {
            self.drive_here();
        } else {
            self.mailbox.ring();
        }
    }

    /// Drives the node in the caller's own task, if nobody else is at it.
    ///
    /// Callers on other runtimes, or on none, leave it to the node's task: transport, log and state machine are used on the runtime where the node was started.
    fn drive(&self) {
        let is_at_home = Handle::try_current().is_ok_and(|here| here.id() == self.runtime);
        if is_at_home {
            let outer = BY_CALLER.replace(Some(self.runtime));
            self.drive_here();
            BY_CALLER.set(outer);
        } else {
            self.mailbox.ring();
        }
    }

    fn drive_here(&self) {
        if self.seat.visit(TURNS_OF_A_CALLER, Driver::drive) == Visit::More {
            self.mailbox.ring();
        }
    }
}
