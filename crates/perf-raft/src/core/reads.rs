//! Reads that wait for a quorum, many to a round.

use crate::error::{LeaderHint, ReadError};
use std::collections::VecDeque;

/// Rounds on their way at once. While so many are, reads gather for the next.
const ROUNDS_MAX: usize = 4;

/// A read that waits.
#[derive(Debug)]
struct Waiting<T> {
    token: T,
    born_tick: u64,
}

/// One confirmation by a quorum, for all reads that waited when it began.
#[derive(Debug)]
struct Round<T> {
    number: u64,
    issued_tick: u64,
    issued_ns: u64,
    term: u64,
    reads: Vec<Waiting<T>>,
}

/// Reads from their arrival until the state machine is as far as they need it.
#[derive(Debug)]
pub(super) struct Reads<T> {
    waiting: Vec<Waiting<T>>,
    rounds: VecDeque<Round<T>>,
    /// Confirmed: the index the state machine must reach.
    confirmed: VecDeque<(u64, Vec<Waiting<T>>)>,
    last_round: u64,
    count: usize,
}

impl<T> Reads<T> {
    pub(super) fn new() -> Self {
        Self {
            waiting: Vec::new(),
            rounds: VecDeque::new(),
            confirmed: VecDeque::new(),
            last_round: 0,
            count: 0,
        }
    }

    /// All reads that have no answer yet.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn push(&mut self, token: T, tick: u64) {
        self.count += 1;
        self.waiting.push(Waiting {
            token,
            born_tick: tick,
        });
    }

    /// A read that needs no quorum: it holds a lease.
    pub(super) fn push_confirmed(&mut self, token: T, index: u64, tick: u64) {
        self.count += 1;
        let read = Waiting {
            token,
            born_tick: tick,
        };
        self.confirm(index, vec![read]);
    }

    /// The number of the round that was begun last.
    pub(super) fn last_round(&self) -> u64 {
        self.last_round
    }

    pub(super) fn wants_round(&self) -> bool {
        !self.waiting.is_empty() && self.rounds.len() < ROUNDS_MAX
    }

    pub(super) fn has_rounds(&self) -> bool {
        !self.rounds.is_empty()
    }

    /// Begins a round with all waiting reads, maybe none, and returns its number.
    pub(super) fn begin_round(&mut self, tick: u64, now_ns: u64, term: u64) -> u64 {
        self.last_round += 1;
        self.rounds.push_back(Round {
            number: self.last_round,
            issued_tick: tick,
            issued_ns: now_ns,
            term,
            reads: std::mem::take(&mut self.waiting),
        });
        self.last_round
    }

    /// A quorum confirmed a round: its reads may go ahead at `index`. Returns when it began and its term.
    pub(super) fn round_done(&mut self, number: u64, index: u64) -> Option<(u64, u64)> {
        let place = self
            .rounds
            .iter()
            .position(|round| round.number == number)?;
        let round = self.rounds.remove(place)?;
        if !round.reads.is_empty() {
            self.confirm(index, round.reads);
        }
        Some((round.issued_ns, round.term))
    }

    fn confirm(&mut self, index: u64, reads: Vec<Waiting<T>>) {
        // Mostly at the end already: later rounds have later indexes.
        let place = self
            .confirmed
            .iter()
            .rposition(|(other, _)| *other <= index);
        let place = place.map_or(0, |place| place + 1);
        self.confirmed.insert(place, (index, reads));
    }

    /// Reads that may go ahead at the state machine's index.
    pub(super) fn take_ready(
        &mut self,
        applied: u64,
        mut reply: impl FnMut(T, Result<u64, ReadError>),
    ) {
        while self
            .confirmed
            .front()
            .is_some_and(|(index, _)| *index <= applied)
        {
            for read in self
                .confirmed
                .pop_front()
                .into_iter()
                .flat_map(|(_, reads)| reads)
            {
                self.count -= 1;
                reply(read.token, Ok(applied));
            }
        }
    }

    /// Rounds of the former leader are lost: their reads wait again.
    pub(super) fn leader_changed(&mut self) {
        for round in self.rounds.drain(..) {
            self.waiting.extend(round.reads);
        }
    }

    /// Ends rounds whose answer was lost, and reads that are `age_max` ticks old.
    pub(super) fn tick(
        &mut self,
        tick: u64,
        round_ticks: u64,
        age_max: u64,
        mut reply: impl FnMut(T, Result<u64, ReadError>),
    ) {
        while self
            .rounds
            .front()
            .is_some_and(|round| tick - round.issued_tick >= round_ticks)
        {
            let round = self.rounds.pop_front();
            self.waiting
                .extend(round.into_iter().flat_map(|round| round.reads));
        }
        let old = |read: &Waiting<T>| tick - read.born_tick >= age_max;
        let waiting = self.waiting.extract_if(.., |read| old(read));
        let mut expired: Vec<Waiting<T>> = waiting.collect();
        for (_, reads) in &mut self.confirmed {
            expired.extend(reads.extract_if(.., |read| old(read)));
        }
        self.count -= expired.len();
        for read in expired {
            reply(read.token, Err(ReadError::TimedOut));
        }
    }

    /// No leader is known: reads that wait for a round are refused.
    pub(super) fn refuse_waiting(
        &mut self,
        hint: LeaderHint,
        mut reply: impl FnMut(T, Result<u64, ReadError>),
    ) {
        self.count -= self.waiting.len();
        for read in self.waiting.drain(..) {
            reply(read.token, Err(ReadError::NotLeader { hint }));
        }
    }

    /// Takes everything apart: the node has stopped.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.count = 0;
        let rounds = self.rounds.drain(..).flat_map(|round| round.reads);
        let confirmed = self.confirmed.drain(..).flat_map(|(_, reads)| reads);
        self.waiting
            .drain(..)
            .chain(rounds)
            .chain(confirmed)
            .map(|read| read.token)
    }
}
