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

/// Callers that wait for something, served in the order in which they came. One is woken at a time; the next one is
/// woken when it has come back or left. Each step costs at most the logarithm of how many wait, and leaving a move of
/// those behind: the connection's lock is held for it.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiters: VecDeque<(u64, Waker)>,
    /// Woken, and has not come back yet.
    woken: Option<u64>,
    tickets: u64,
}

impl Line {
    /// How many callers wait and were not woken.
    pub(super) fn waiters(&self) -> usize {
        self.waiters.len()
    }

    /// Whether the line is empty, and no woken caller is still to come back.
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

    /// What a caller that comes, or comes back, may do.
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

    /// The waiter was served. Returns the waker of the next one, which may be served, too.
    pub(super) fn served(&mut self, waiter: &mut Waiter) -> Option<Waker> {
        // It is not among those that wait: it was woken, or there are none.
        waiter.ticket = None;
        self.wake_next()
    }

    /// Where a ticket is among those that wait. They are in the order of their tickets: a new one is the greatest, and
    /// one that was woken was the first.
    fn place_of(&self, ticket: u64) -> Option<usize> {
        self.waiters
            .binary_search_by_key(&ticket, |(other, _)| *other)
            .ok()
    }

    /// Puts a waiter in line that could not be served: at its former place if it had the turn.
    pub(super) fn wait(&mut self, waiter: &mut Waiter, waker: &Waker, turn: Turn) {
        if let Some(ticket) = waiter.ticket {
            if turn == Turn::Woken {
                self.waiters.push_front((ticket, waker.clone()));
                return;
            }
            let place = self.place_of(ticket);
            if let Some((_, known)) = place.and_then(|place| self.waiters.get_mut(place)) {
                known.clone_from(waker);
                return;
            }
        }
        self.tickets += 1;
        waiter.ticket = Some(self.tickets);
        self.waiters.push_back((self.tickets, waker.clone()));
    }

    /// Removes a waiter that gives up. If it had the turn, returns the waker of the next one.
    pub(super) fn leave(&mut self, waiter: &mut Waiter) -> Option<Waker> {
        let ticket = waiter.ticket.take()?;
        if self.woken == Some(ticket) {
            if mutant::is("turn_lost_on_cancel") {
                return None;
            }
            self.woken = None;
            return self.wake_next();
        }
        if let Some(place) = self.place_of(ticket) {
            self.waiters.remove(place);
        }
        None
    }

    /// Empties the line. Returns the wakers of the callers that were in it.
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

#[cfg(all(test, not(perf_loom)))]
mod tests {
    use super::*;

    /// Callers come, come back, leave and are dismissed in any order. A list that is walked through says who is next.
    #[test]
    fn callers_are_served_in_the_order_in_which_they_came() {
        let mut line = Line::default();
        let mut waiters: Vec<Waiter> = (0..50).map(|_| Waiter::default()).collect();
        let mut order: VecDeque<usize> = VecDeque::new();
        let mut woken: Option<usize> = None;
        let (mut random, mut served, mut went_back) = (7_u64, 0, 0);
        let mut below = |bound: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) % bound
        };
        let wake = |line: &mut Line, order: &mut VecDeque<usize>, woken: &mut Option<usize>| {
            let wakes = woken.is_none() && !order.is_empty();
            assert_eq!(line.wake_next().is_some(), wakes);
            if wakes {
                *woken = order.pop_front();
            }
        };
        for _ in 0..20_000 {
            let one = below(50) as usize;
            let turn = line.turn(&waiters[one]);
            let expected = match woken {
                Some(other) if other == one => Turn::Woken,
                None if order.is_empty() => Turn::Free,
                _ => Turn::Waits,
            };
            assert_eq!(turn, expected);
            woken = woken.filter(|other| *other != one);
            if turn != Turn::Waits && below(2) == 0 {
                served += 1;
                let next = line.served(&mut waiters[one]);
                assert_eq!(next.is_some(), !order.is_empty());
                woken = order.pop_front();
            } else {
                line.wait(&mut waiters[one], Waker::noop(), turn);
                if turn == Turn::Woken {
                    went_back += 1;
                    order.push_front(one);
                } else if !order.contains(&one) {
                    order.push_back(one);
                }
            }
            match below(20) {
                0..8 => wake(&mut line, &mut order, &mut woken),
                8..12 => {
                    let one = below(50) as usize;
                    let next = line.leave(&mut waiters[one]);
                    if woken == Some(one) {
                        assert_eq!(next.is_some(), !order.is_empty());
                        woken = order.pop_front();
                    } else {
                        assert!(next.is_none());
                        order.retain(|other| *other != one);
                    }
                }
                12 if below(20) == 0 => {
                    assert_eq!(line.dismiss().count(), order.len());
                    order.clear();
                    woken = None;
                }
                _ => {}
            }
            assert_eq!(line.waiters(), order.len());
        }
        assert!(served > 100 && went_back > 100, "{served} {went_back}");
    }
}
