//! Waiting in turn.

use crate::primitive::mutant;
use std::collections::VecDeque;
use std::task::Waker;

/// A place in a line of callers that wait for the same thing.
#[derive(Debug, Default)]
pub struct Waiter {
    ticket: Option<u64>,
}

/// What a caller may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Others were there before.
    Waits,
    /// The line is empty: no caller waits.
    Free,
    /// The caller was woken for this.
    Woken,
}

/// Callers that wait for something, served in the order in which they came. One is woken at a time; the next one is woken when it has come back or
/// left.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiters: VecDeque<(u64, Waker)>,
    /// Woken, and has not come back yet.
    woken: Option<u64>,
    tickets: u64,
}

impl Line {
    /// How many wait and were not woken.
    pub(super) fn waiters(&self) -> usize {
        self.waiters.len()
    }

    /// Whether nobody waits, woken or not.
    pub(super) fn is_empty(&self) -> bool {
        self.woken.is_none() && self.waiters.is_empty()
    }

    /// The next in line, unless one that was woken has not come back.
    pub(super) fn wake_next(&mut self) -> Option<Waker> {
        if self.woken.is_some() {
            return None;
        }
        let (ticket, waker) = self.waiters.pop_front()?;
        self.woken = Some(ticket);
        Some(waker)
    }

    /// The waiter comes, or comes back.
    pub(super) fn turn(&mut self, waiter: &Waiter) -> Turn {
        if waiter.ticket.is_some() && self.woken == waiter.ticket {
            self.woken = None;
            return Turn::Woken;
        }
        if self.is_empty() {
            return Turn::Free;
        }
        Turn::Waits
    }

    /// The waiter has what it came for. Returns the next one, for which there may be something, too.
    pub(super) fn served(&mut self, waiter: &mut Waiter) -> Option<Waker> {
        if let Some(ticket) = waiter.ticket.take() {
            self.waiters.retain(|(other, _)| *other != ticket);
        }
        self.wake_next()
    }

    /// There was nothing for the waiter: it waits, where it was before if it had its turn.
    pub(super) fn wait(&mut self, waiter: &mut Waiter, waker: &Waker, turn: Turn) {
        let ticket = *waiter.ticket.get_or_insert_with(|| {
            self.tickets += 1;
            self.tickets
        });
        let place = self.waiters.iter_mut().find(|(other, _)| *other == ticket);
        match place {
            Some((_, known)) => known.clone_from(waker),
            None if turn == Turn::Woken => self.waiters.push_front((ticket, waker.clone())),
            None => self.waiters.push_back((ticket, waker.clone())),
        }
    }

    /// The waiter gives up. Returns whose turn it is now, if it was the waiter's.
    pub(super) fn leave(&mut self, waiter: &mut Waiter) -> Option<Waker> {
        let ticket = waiter.ticket.take()?;
        if self.woken == Some(ticket) {
            if mutant::is("turn_lost_on_cancel") {
                return None;
            }
            self.woken = None;
            return self.wake_next();
        }
        self.waiters.retain(|(other, _)| *other != ticket);
        None
    }

    /// Nobody is in line any more. Returns who was, to be woken.
    pub(super) fn dismiss(&mut self) -> impl Iterator<Item = Waker> {
        self.woken = None;
        self.waiters.drain(..).map(|(_, waker)| waker)
    }
}

impl Waiter {
    /// Whether it is, or was, in line.
    pub(super) fn is_in_line(&self) -> bool {
        self.ticket.is_some()
    }
}
