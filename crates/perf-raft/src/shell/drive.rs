//! How Raft is driven: take all that waits, let the core decide, and do what it says.

use super::answer::{Token, wake, wake_all};
use super::apply::{Applier, Outcome};
use super::apply_pool::ApplyClient;
use super::fetcher::Fetcher;
use super::log_thread::LogThread;
use super::mailbox::{Incoming, Mailbox, Reports, Request};
use super::pass::Pass;
use super::sleepers::{Change, Sleeper};
use super::snapshot_io::{OwnSnapshot, SnapshotIo};
use super::stats::{RaftStats, StageStats};
use crate::core::{ApplyJob, Core, Outputs, RaftReport, Reply};
use crate::error::{ProposeError, StopReason, panic_message};
use crate::log::{LogStore, run_jobs};
use crate::primitive::mutant;
use crate::transport::{SendError, Transport, encode_frames};
use bytes::Bytes;
use parking_lot::Mutex;
use perf_atomics::{RaftStatus, Snapshot};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Messages taken in one turn, before proposals and ticks have theirs.
const MESSAGES_PER_TURN: usize = 512;

/// Batches of proposals on their way at once; others gather meanwhile. Without the bound many clients end up in batches of one, each with a round
/// of messages of its own: a stable state, as answers then come one at a time too. Two keep the disk busy.
const BATCHES_IN_FLIGHT: usize = 2;

/// How often a batch is held back for more. Each time others have their turn.
const HOLDS_MAX: u32 = 8;

/// Whether it pays to hold a batch back: callers that have their answers and not taken them yet propose again soon, and share the batch if
/// they come in time. Else many callers end up in small batches, each with a round of messages of its own, and stay there, since
/// their answers come one by one too.
fn is_worth_waiting(waiting: usize, on_their_way: usize, callers: usize) -> bool {
    let coming = callers.saturating_sub(waiting + on_their_way);
    waiting > 0 && coming * 4 > waiting
}

/// A tick that is later than this part of a period moves those after it, by whole such parts. The groups of a host begin at
/// whole periods, so they stay together, and send their heartbeats together.
const PARTS_OF_A_PERIOD: u32 = 8;

/// When the tick after one at `now` is due, which was due at `due`: at the pace of the clock, and after a delay a whole period later, or up to an
/// eighth more. Never faster than the clock, not even to catch up: leases of others rely on it.
pub(crate) fn next_tick(due: Instant, now: Instant, period: Duration) -> Instant {
    let part = (period / PARTS_OF_A_PERIOD).as_nanos().max(1);
    let late = now.saturating_duration_since(due).as_nanos();
    let moved = match late < part {
        true => 0,
        false => late.div_ceil(part) * part,
    };
    due + Duration::from_nanos(u64::try_from(moved).unwrap_or(u64::MAX)) + period
}

/// The first tick of a group that begins at `now`: at a whole number of periods after `start`, and a whole period later or up to one more.
pub(crate) fn first_tick(start: Instant, now: Instant, period: Duration) -> Instant {
    let since = now.saturating_duration_since(start).as_nanos();
    let period = period.as_nanos().max(1);
    let due = (since.div_ceil(period) + 1) * period;
    start + Duration::from_nanos(u64::try_from(due).unwrap_or(u64::MAX))
}

/// What became of the proposals that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proposed {
    /// None waited.
    Nothing,
    Batch,
    /// Enough batches are on their way.
    Waiting,
    Held,
}

/// A transport that was started. It is stopped when its last user drops it.
pub(crate) struct Attached(pub(crate) Arc<dyn Transport>);

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Where log jobs go.
pub(crate) enum LogSide {
    /// A log in memory: done at once.
    Inline(Box<dyn LogStore>, StageStats),
    Thread(Arc<LogThread>),
}

/// Where jobs for the state machine go.
pub(crate) enum ApplySide {
    Inline(Box<Applier>),
    Pool(ApplyClient),
}

/// What the handle reads.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) status: Snapshot<RaftStatus>,
    pub(crate) stats: Mutex<RaftStats>,
    pub(crate) report: watch::Sender<RaftReport>,
}

pub(crate) struct Driver {
    pub(crate) core: Core<Token>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) transport: Arc<Attached>,
    pub(crate) log: LogSide,
    pub(crate) fetcher: Fetcher,
    /// None if the log does not keep data of snapshots in pieces.
    pub(crate) snapshots: Option<SnapshotIo>,
    pub(crate) apply: ApplySide,
    pub(crate) published: Arc<Published>,
    pub(crate) ended: watch::Sender<Option<StopReason>>,
    pub(crate) start: Instant,
    /// When the next tick is.
    pub(crate) due: Instant,
    /// Why the node must stop, once it must.
    pub(crate) failed: Option<StopReason>,
    pub(crate) last_status: RaftStatus,
    pub(crate) scratch: Scratch,
    /// How often the batch that waits was held back.
    pub(crate) holds: u32,
    /// None if the group never sleeps.
    pub(crate) sleeper: Option<Sleeper>,
    #[cfg(feature = "metrics")]
    pub(crate) metrics: Option<crate::metrics::Recorder>,
}

/// Lists that are used again in each turn.
#[derive(Default)]
pub(crate) struct Scratch {
    out: Outputs<Token>,
    proposals: Vec<(Bytes, Token)>,
    messages: Vec<Incoming>,
    reports: Reports,
    wakers: Vec<Waker>,
    refused: Vec<(u64, SendError)>,
    report: RaftReport,
    propose: StageStats,
}

fn is_of_membership(answer: &(Token, Reply)) -> bool {
    matches!(answer.1, Reply::Membership(_))
}

impl Driver {
    /// One turn, of a pass if it has one; whether there is more to do at once. Once something failed that is to stop the node, which its task
    /// does.
    pub(crate) fn drive(&mut self, pass: Option<&mut Pass>) -> bool {
        if self.failed.is_some() {
            return true;
        }
        let turn = catch_unwind(AssertUnwindSafe(|| self.turn(pass)));
        let turn =
            turn.unwrap_or_else(|panic| Err(StopReason::Core(panic_message(&*panic).into())));
        turn.unwrap_or_else(|reason| {
            self.failed = Some(reason);
            true
        })
    }

    fn turn(&mut self, mut pass: Option<&mut Pass>) -> Result<bool, StopReason> {
        // Looked at in each turn: time goes on beside a flood.
        let now = Instant::now();
        let tick = now >= self.due;
        if tick {
            self.due = next_tick(self.due, now, self.core.options().tick);
        }
        let now_ns = self.since_start(now);
        self.core.set_now(now_ns);
        if let Some(sleeper) = &mut self.sleeper {
            sleeper.update(&mut self.core);
        }
        if tick {
            self.core.tick(now_ns);
        }
        self.take_reports()?;
        let more = self
            .mailbox
            .take_messages(&mut self.scratch.messages, MESSAGES_PER_TURN);
        for incoming in self.scratch.messages.drain(..) {
            match incoming {
                Incoming::Frame(frame) => self.core.receive(*frame),
                Incoming::Encoded(frame) => self.core.receive_encoded(frame),
            }
        }
        let mut proposed = self.propose();
        self.settle(pass.as_deref_mut())?;
        if proposed != Proposed::Nothing {
            // What gathered while batches were on their way goes now, if they have arrived.
            proposed = self.propose();
            if proposed == Proposed::Batch {
                self.settle(pass.as_deref_mut())?;
            }
        }
        let is_held = proposed == Proposed::Held;
        self.holds = if is_held { self.holds + 1 } else { 0 };
        self.note_sleep(pass)?;
        if tick {
            self.publish_stats();
        }
        Ok(more || is_held)
    }

    /// Notes whether the group sleeps now.
    fn note_sleep(&mut self, pass: Option<&mut Pass>) -> Result<(), StopReason> {
        let change = match &mut self.sleeper {
            Some(sleeper) => sleeper.note(&mut self.core),
            None => Change::None,
        };
        match change {
            Change::None => {}
            // A caller may drive: the task shall see that ticks are needed again.
            Change::Woke => self.mailbox.notify(),
            Change::FellAsleep => {
                self.publish_stats();
                self.shrink_to_fit();
            }
            Change::Refused => self.settle(pass)?,
        }
        Ok(())
    }

    /// Gives memory back that is kept from turn to turn: a group may sleep for long.
    fn shrink_to_fit(&mut self) {
        self.core.shrink_to_fit();
        self.mailbox.shrink_to_fit();
        if let ApplySide::Pool(client) = &self.apply {
            client.shrink_to_fit();
        }
        // All lists are empty at the end of a turn.
        let propose = self.scratch.propose;
        self.scratch = Scratch {
            propose,
            ..Scratch::default()
        };
    }

    fn since_start(&self, now: Instant) -> u64 {
        let now_ns = now.saturating_duration_since(self.start).as_nanos();
        u64::try_from(now_ns).unwrap_or(u64::MAX)
    }

    /// Proposes all queued proposals, unless enough batches are in flight or the queue is held back for more.
    fn propose(&mut self) -> Proposed {
        if self.core.batches_in_flight() >= BATCHES_IN_FLIGHT {
            return Proposed::Waiting;
        }
        let on_their_way = self.core.proposals_waiting();
        let may_hold = self.holds < HOLDS_MAX;
        let batch = &mut self.scratch.proposals;
        let is_held = self.mailbox.take_proposals_unless(
            |waiting, callers| may_hold && is_worth_waiting(waiting, on_their_way, callers),
            batch,
        );
        if is_held {
            return Proposed::Held;
        }
        if batch.is_empty() {
            return Proposed::Nothing;
        }
        let count = batch.len() as u64;
        self.scratch.propose.add(count, Duration::ZERO);
        self.core.propose(batch);
        self.holds = 0;
        Proposed::Batch
    }

    fn take_reports(&mut self) -> Result<(), StopReason> {
        let mut reports = std::mem::take(&mut self.scratch.reports);
        self.mailbox.take_reports(&mut reports);
        if let Some(reason) = reports.failure.take() {
            return Err(reason);
        }
        if reports.persisted > 0 {
            self.core.persisted(std::mem::take(&mut reports.persisted));
        }
        if reports.applied > 0 {
            self.core.applied(std::mem::take(&mut reports.applied));
        }
        if let Some(fetched) = reports.fetched.take() {
            let (fetch, entries) = self.fetcher.end(fetched);
            let entries = entries.map_err(|error| StopReason::Log(Arc::new(error)))?;
            self.core.fetched(fetch, entries);
        }
        for (peer, error) in reports.not_sent.drain(..) {
            self.core.not_sent(peer, error);
        }
        if std::mem::take(&mut reports.wake) {
            self.core.wake();
        }
        if let Some((index, snapshot)) = reports.snapshot.take() {
            self.tell_snapshot(index, snapshot);
        }
        if let Some(index) = reports.durable.take() {
            self.core.durable_up_to(index);
        }
        for end in reports.snapshot_ends.drain(..) {
            if let Some(snapshots) = &mut self.snapshots {
                let done = snapshots.end(end);
                let done = done.map_err(|error| StopReason::Log(Arc::new(error)))?;
                self.core.snapshot_done(done);
            }
        }
        for request in reports.requests.drain(..) {
            match request {
                Request::Read(token) => self.core.read(token),
                // The clock is read after the request was taken: this thread may have been held up since the turn began.
                Request::LeaseRead(token) => {
                    let now_ns = self.since_start(Instant::now());
                    self.core.lease_read(token, now_ns);
                }
                Request::ChangeMembership {
                    changes,
                    forced,
                    token,
                } => self.core.change_membership(&changes, forced, token),
                Request::TransferLeader(to, token) => self.core.transfer_leader(to, token),
                Request::Snapshot(token) => self.core.make_snapshot(token),
                Request::Stop => return Err(StopReason::Shutdown),
            }
        }
        self.scratch.reports = reports;
        Ok(())
    }

    fn tell_snapshot(&mut self, index: u64, snapshot: Result<OwnSnapshot, String>) {
        match snapshot {
            Ok(OwnSnapshot::Memory(data)) => self.core.snapshot_made(index, Ok(data)),
            Ok(OwnSnapshot::Stored(data)) => self.core.snapshot_stored(index, Ok(data)),
            Err(reason) => self.core.snapshot_made(index, Err(reason)),
        }
    }

    /// Does what the core says until it says nothing more.
    fn settle(&mut self, mut pass: Option<&mut Pass>) -> Result<(), StopReason> {
        // What the core is told meanwhile: only that can make it say more.
        let mut told = true;
        while std::mem::take(&mut told) {
            self.core.poll(&mut self.scratch.out);
            if let Some(defect) = self.core.defect() {
                return Err(StopReason::Core(defect.into()));
            }
            // Before the frames: a node that learns of a new leader from them finds that its status says so.
            self.publish_status();
            told |= self.send_frames(pass.as_deref_mut());
            told |= self.write_log(pass.as_deref_mut())?;
            for fetch in self.scratch.out.fetches.drain(..) {
                self.fetcher.begin(fetch, &self.mailbox);
            }
            if !self.scratch.out.snapshot_jobs.is_empty()
                && let Some(snapshots) = &mut self.snapshots
            {
                for job in self.scratch.out.snapshot_jobs.drain(..) {
                    snapshots.begin(job);
                }
            }
            told |= self.run_apply_jobs()?;
            if self.scratch.out.replies.iter().any(is_of_membership) {
                // The caller finds the new membership in the report.
                self.publish_report();
            }
            for (token, reply) in self.scratch.out.replies.drain(..) {
                self.scratch.wakers.extend(token.reply(reply));
            }
            wake_all(&mut self.scratch.wakers);
        }
        Ok(())
    }

    /// Whether the core was told of a peer that did not take something.
    fn send_frames(&mut self, mut pass: Option<&mut Pass>) -> bool {
        if self.scratch.out.frames.is_empty() {
            return false;
        }
        let (transport, mailbox) = (&self.transport, &self.mailbox);
        let refused = &mut self.scratch.refused;
        encode_frames(
            &mut self.scratch.out.frames,
            transport.0.shares_frames(),
            |message| match &mut pass {
                Some(pass) => pass.send(message, transport, mailbox),
                None => transport.0.send(message),
            },
            |peer, error| {
                if !refused.contains(&(peer, error)) {
                    refused.push((peer, error));
                }
            },
        );
        let told = !refused.is_empty();
        for (peer, error) in refused.drain(..) {
            self.core.not_sent(peer, error);
        }
        told
    }

    /// Whether the core was told of what is persisted.
    fn write_log(&mut self, pass: Option<&mut Pass>) -> Result<bool, StopReason> {
        let jobs = &mut self.scratch.out.log_jobs;
        if jobs.is_empty() {
            return Ok(false);
        }
        match &mut self.log {
            LogSide::Thread(thread) => {
                thread.push(jobs, &self.mailbox);
                match pass {
                    Some(pass) => pass.note_log(thread),
                    None => thread.wake(),
                }
                Ok(false)
            }
            LogSide::Inline(log, stats) => {
                let sequence = run_jobs(log.as_mut(), jobs)
                    .map_err(|error| StopReason::Log(Arc::new(error)))?;
                stats.add(jobs.len() as u64, Duration::ZERO);
                jobs.clear();
                self.core.persisted(sequence);
                Ok(true)
            }
        }
    }

    /// Whether the core was told of what is applied.
    fn run_apply_jobs(&mut self) -> Result<bool, StopReason> {
        let jobs = &mut self.scratch.out.apply_jobs;
        if jobs.is_empty() {
            return Ok(false);
        }
        match &mut self.apply {
            ApplySide::Pool(client) => {
                client.push(jobs.drain(..));
                Ok(false)
            }
            ApplySide::Inline(applier) => {
                let (mut snapshots, mut durable) = (Vec::new(), None);
                for job in jobs.drain(..) {
                    match applier.run(job)? {
                        Outcome::Applied(index) => self.core.applied(index),
                        Outcome::Snapshot(index, data) => snapshots.push((index, data)),
                        Outcome::Durable(_, index) => durable = Some(index),
                    }
                }
                if let Some(index) = durable {
                    self.core.durable_up_to(index);
                }
                for (index, data) in snapshots {
                    self.tell_snapshot(index, data);
                }
                Ok(true)
            }
        }
    }

    /// Publishes the status if it changed.
    fn publish_status(&mut self) {
        let status = self.core.status();
        if status != self.last_status {
            self.last_status = status;
            self.published.status.publish(status);
        }
    }

    /// Who the members are and what is the matter, if that changed.
    fn publish_report(&mut self) {
        let report = &mut self.scratch.report;
        self.core.put_report(report);
        self.published.report.send_if_modified(|published| {
            let is_new = published != report;
            if is_new {
                std::mem::swap(published, report);
            }
            is_new
        });
    }

    fn publish_stats(&mut self) {
        let mut propose = self.scratch.propose;
        propose.waiting = self.mailbox.proposals_waiting() as u64;
        let log = match &self.log {
            LogSide::Inline(_, stats) => *stats,
            LogSide::Thread(thread) => thread.stats(),
        };
        let mut apply = match &self.apply {
            ApplySide::Inline(applier) => applier.stats,
            ApplySide::Pool(client) => *client.queue.stats.lock(),
        };
        apply.waiting = self.last_status.apply_lag();
        self.publish_report();
        let stats = RaftStats {
            status: self.last_status,
            core: self.core.stats(),
            propose,
            log,
            apply,
            proposals_in_log: self.core.proposals_waiting() as u64,
            log_bytes: self.core.log_bytes() as u64,
            log_memory_bytes: self.core.log_memory_bytes() as u64,
        };
        #[cfg(feature = "metrics")]
        if let Some(metrics) = &mut self.metrics {
            metrics.record(&stats);
        }
        *self.published.stats.lock() = stats;
    }

    /// Answers everything that waits and ends the log and the state machine. The mailbox is closed.
    pub(crate) async fn stop(mut self, reason: StopReason) {
        // Core may be what panicked: then its answers of last resort have to do.
        let mut out = std::mem::take(&mut self.scratch.out);
        let stopped = catch_unwind(AssertUnwindSafe(|| self.core.stop(&reason, &mut out)));
        drop(stopped);
        for job in out.apply_jobs.drain(..) {
            if let ApplyJob::Apply { waiting, .. } = job {
                let unknown = || Reply::Failed(ProposeError::Unknown);
                out.replies
                    .extend(waiting.into_iter().map(|(_, token)| (token, unknown())));
            }
        }
        for (token, reply) in out.replies.drain(..) {
            if let Some(waker) = token.reply(reply) {
                wake(waker);
            }
        }
        self.last_status = RaftStatus {
            role: perf_atomics::Role::Follower,
            leader_id: 0,
            ..self.core.status()
        };
        self.published.status.publish(self.last_status);
        self.publish_stats();
        let Self {
            core,
            transport,
            log,
            apply,
            snapshots,
            ended,
            ..
        } = self;
        // With the memory that its entries take.
        drop(core);
        // Stops it, unless other groups use it.
        drop(transport);
        match apply {
            ApplySide::Pool(client) if mutant::is("machine_outlives_node") => drop(client),
            ApplySide::Pool(client) => client.close().await,
            ApplySide::Inline(applier) => drop(applier),
        }
        if let Some(snapshots) = snapshots {
            snapshots.close().await;
        }
        match log {
            LogSide::Thread(thread) => thread.close().await,
            LogSide::Inline(log, _) => drop(log),
        }
        ended.send_replace(Some(reason));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_waits_for_those_who_are_about_to_propose_and_for_nobody_else() {
        // Of 256 callers one has proposed, and the others have their answers and not taken them.
        assert!(is_worth_waiting(1, 0, 256));
        assert!(!is_worth_waiting(250, 0, 256), "few are to come");
        assert!(!is_worth_waiting(1, 0, 1), "a lone client");
        assert!(
            !is_worth_waiting(1, 255, 256),
            "the others wait for the log"
        );
        assert!(!is_worth_waiting(0, 0, 256), "there is nothing to hold");
        // A caller that gave up left its proposal.
        assert!(!is_worth_waiting(3, 0, 2));
    }

    #[test]
    fn ticks_keep_the_pace_and_never_catch_up() {
        let period = Duration::from_millis(40);
        let ms = Duration::from_millis;
        let due = Instant::now();
        assert_eq!(next_tick(due, due, period), due + period);
        assert_eq!(next_tick(due, due + ms(4), period), due + period);
        for (late, moved) in [(5, 5), (6, 10), (39, 40), (40, 40), (41, 45), (4000, 4000)] {
            let next = next_tick(due, due + ms(late), period);
            assert_eq!(next, due + ms(moved) + period, "{late} ms late");
        }
    }

    #[test]
    fn groups_begin_at_the_same_ticks() {
        let (start, period) = (Instant::now(), Duration::from_millis(40));
        let ms = Duration::from_millis;
        for (begin, due) in [(0, 40), (1, 80), (39, 80), (40, 80), (41, 120)] {
            let first = first_tick(start, start + ms(begin), period);
            assert_eq!(first, start + ms(due), "{begin} ms after the start");
        }
    }
}
