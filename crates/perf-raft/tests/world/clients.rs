//! What clients ask for and get.

use super::history::Kind;
use super::machine::Machine;
use super::{
    CLIENTS, Event, FAULTS_UNTIL, HEALED, KEYS, LATE_REQUESTS_UNTIL, MS, Op, REQUESTS_UNTIL, World,
};
use perf_raft::core::Reply;
use perf_raft::{ProposeError, ReadError, Role};

/// The client of a thread that was held up.
pub(super) fn woken_client(id: u64, key: u64) -> u64 {
    CLIENTS + id * KEYS + key
}

impl World {
    /// A client that waits for nothing asks for something, at a node that it believes to lead or at any.
    pub(super) fn client(&mut self, client: u64) {
        // A small log that is kept for a slow peer takes few requests: then it goes on until one is taken.
        let is_over = self.now > LATE_REQUESTS_UNTIL || self.history.acked_after(HEALED);
        if self.now > REQUESTS_UNTIL && (is_over || !self.is_slow()) {
            return;
        }
        let longest = if self.calm || self.hands_over_often {
            20 * MS
        } else {
            self.sleepiness.pause
        };
        // Back soon once the world has healed.
        let until_calm = (FAULTS_UNTIL + 20 * MS).saturating_sub(self.now);
        let pause = MS + self.random.below(longest).min(until_calm.max(20 * MS));
        self.at(pause, Event::Client(client));
        if self.history.is_waiting(client) && !self.history.gave_up(client, self.now, 1_500 * MS) {
            return;
        }
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        let leads = |id: &&u64| {
            self.nodes[id]
                .core
                .as_ref()
                .is_some_and(|core| core.status().role == Role::Leader)
        };
        let leaders: Vec<u64> = ids.iter().filter(leads).copied().collect();
        let candidates = if self.random.one_in(4) || leaders.is_empty() {
            &ids
        } else {
            &leaders
        };
        let id = candidates[self.random.index(candidates.len())];
        if self.nodes[&id].core.is_none() || self.nodes[&id].paused_until > self.now {
            return;
        }
        let key = self.random.below(KEYS);
        let kind = match self.random.below(5) {
            0 => Kind::Read { lease: false },
            1 => Kind::Read { lease: true },
            _ if self.now < self.empty_until => return self.propose_filler(id),
            _ => {
                self.next_value += 1;
                Kind::Swap(self.next_value)
            }
        };
        let op = self.history.invoke(client, key, kind, self.now);
        let now_ns = self.local_now(id);
        let mut batch = Vec::new();
        if let Kind::Swap(value) = kind {
            batch.push((Machine::command(key, value), Op::Client(op)));
            self.coverage.batches += 1;
            // Others propose in the same turn.
            let others = match self.random.below(8) {
                0 => self.random.below(64),
                1 | 2 => self.random.below(4),
                _ => 0,
            };
            // A burst that is more than a small log takes.
            let is_burst = self.random.one_in(5);
            if is_burst
                && others as usize * self.options.proposal_bytes_max
                    > 2 * self.options.log_bytes_max
            {
                // The next leader finds it in its log, before anybody knows that it is committed.
                self.coverage.bursts += 1;
                let (after, held_up) = (
                    self.random.below(6 * MS),
                    200 * MS + self.random.below(300 * MS),
                );
                self.at(after, Event::HeldUp(id, held_up));
            }
            for _ in 0..others {
                self.next_value += 1;
                let bytes = match self.random.below(16) {
                    _ if is_burst => self.options.proposal_bytes_max,
                    0 => self.options.proposal_bytes_max,
                    1 => self.options.proposal_bytes_max + 1,
                    _ => 1 + self.random.index(40),
                };
                self.coverage.batched += 1;
                self.fillers.insert(self.next_value, id);
                batch.push((Machine::filler(bytes), Op::Filler(self.next_value)));
            }
        }
        self.with_interrupted_core(id, |core, _| match kind {
            Kind::Swap(_) => core.propose(&mut batch),
            Kind::Read { lease: true } => core.lease_read(Op::Client(op), now_ns),
            Kind::Read { lease: false } => core.read(Op::Client(op)),
        });
    }

    /// A proposal that is in the log and not in the state.
    fn propose_filler(&mut self, id: u64) {
        self.next_value += 1;
        self.fillers.insert(self.next_value, id);
        let bytes = 1 + self.random.index(40);
        let mut batch = vec![(Machine::filler(bytes), Op::Filler(self.next_value))];
        self.with_interrupted_core(id, |core, _| core.propose(&mut batch));
    }

    /// A thread that was held up goes on with a read of each key by its lease.
    pub(super) fn woken(&mut self, id: u64) {
        if self.nodes[&id].core.is_none() {
            return;
        }
        for key in 0..KEYS {
            let client = woken_client(id, key);
            self.history.gave_up(client, self.now, 1_500 * MS);
            if self.history.is_waiting(client) {
                continue;
            }
            let now_ns = self.local_now(id);
            let read = Kind::Read { lease: true };
            let op = self.history.invoke(client, key, read, self.now);
            self.with_interrupted_core(id, |core, _| core.lease_read(Op::Client(op), now_ns));
        }
    }

    pub(super) fn reply(&mut self, id: u64, op: Op, reply: Reply) {
        let is_busy = matches!(
            reply,
            Reply::Failed(ProposeError::Busy { .. } | ProposeError::NoSnapshot { .. })
                | Reply::ReadFailed(ReadError::Busy { .. })
        );
        self.coverage.busy += u64::from(is_busy);
        let op = match op {
            Op::Client(op) => op,
            Op::Filler(number) => {
                if self.fillers.remove(&number).is_none() {
                    self.fail(format!("filler {number} is answered twice"));
                }
                return;
            }
            Op::Admin => {
                self.admin_waits = false;
                self.coverage.memberships += u64::from(matches!(reply, Reply::Membership(_)));
                self.coverage.transfers += u64::from(matches!(reply, Reply::Transferred));
                return;
            }
        };
        match reply {
            Reply::Read(_) => {
                let value = self.nodes[&id].machine.get(self.history.key(op));
                self.coverage.reads += 1;
                self.coverage.lease_reads += u64::from(self.history.is_lease(op));
                self.history.returned(op, self.now, value);
            }
            Reply::Failed(ProposeError::Unknown | ProposeError::Stopped(_)) => {
                self.coverage.unknown += 1;
                self.history.unknown(op);
            }
            Reply::Failed(ref error) if self.calm => {
                self.last_refusal = error.to_string();
                self.coverage.refused += 1;
                self.history.had_no_effect(op);
            }
            Reply::Failed(_) | Reply::ReadFailed(_) => {
                self.coverage.refused += 1;
                self.history.had_no_effect(op);
            }
            other => self.fail(format!("a client got {other:?}")),
        }
    }
}
