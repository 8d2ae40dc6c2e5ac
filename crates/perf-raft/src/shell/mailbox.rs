//! Work that is queued for the driver of a node.

use super::answer::{Answer, Batch, Token, wake};
use super::fetcher::Fetched;
use super::run_queue::Notifier;
use super::slot::{Answerer, Slot};
use super::snapshot_io::{OwnSnapshot, SnapshotEnd};
use crate::GroupId;
use crate::codec::Frame;
use crate::core::MembershipChange;
use crate::error::{ProposeError, StopReason};
use crate::inbound::{InboundLimits, InboundQueues, MessageClass, Queued};
use crate::options::RaftOptions;
use crate::primitive::threads::{AtomicBool, Mutex};
use crate::primitive::{Ordering, mutant};
use crate::transport::{DeliverError, SendError};
use bytes::Bytes;
use raft::eraftpb::Message;
use std::fmt;
use std::sync::Arc;

/// After so many proposals in a row without another caller meanwhile, a caller counts as alone. Where callers overlap now and then, the node stays with its task.
const ALONE_AFTER: u8 = 8;

/// A request that is no proposal.
#[derive(Debug)]
pub(crate) enum Request {
    Read(Token),
    LeaseRead(Token),
    ChangeMembership {
        changes: Vec<MembershipChange>,
        forced: bool,
        token: Token,
    },
    TransferLeader(u64, Token),
    Snapshot(Token),
    Stop,
}

/// Proposals that wait, and slots for their answers.
#[derive(Debug, Default)]
struct Proposals {
    waiting: Vec<(Bytes, Token)>,
    bytes: usize,
    free: Vec<Arc<Slot<Answer>>>,
    /// Callers that have a slot, from their proposal until they have taken its answer.
    callers: usize,
    /// Proposals in a row without another caller.
    alone: u8,
    closed: Option<StopReason>,
}

/// Who drives the node for the work that was just queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A driver that was notified of earlier work and has not looked yet.
    Notified,
    /// The node's task, once it is notified.
    Task,
    /// The caller that queued it.
    Caller,
}

impl Proposals {
    /// Who sees to a proposal that was just queued; `was_empty` says that none waited before.
    fn next(&mut self, was_empty: bool) -> Next {
        self.alone = if self.callers == 1 {
            self.alone.saturating_add(1)
        } else {
            0
        };
        if self.alone >= ALONE_AFTER {
            Next::Caller
        } else if was_empty {
            Next::Task
        } else {
            Next::Notified
        }
    }
}

/// A queued frame: decoded, or to be decoded by the driver.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// Apart: it is moved some times on its way, and has hundreds of bytes.
    Frame(Box<Frame>),
    Encoded(Bytes),
}

impl Queued for Incoming {
    fn raft_message_mut(&mut self) -> Option<&mut Message> {
        match self {
            Self::Frame(frame) => frame.raft_message_mut(),
            Self::Encoded(_) => None,
        }
    }
}

/// What is reported back to the driving task. Later reports take the place of earlier ones.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    pub(crate) persisted: u64,
    pub(crate) applied: u64,
    pub(crate) fetched: Option<Fetched>,
    pub(crate) snapshot: Option<(u64, Result<OwnSnapshot, String>)>,
    pub(crate) durable: Option<Result<u64, String>>,
    pub(crate) snapshot_ends: Vec<SnapshotEnd>,
    pub(crate) failure: Option<StopReason>,
    /// What the group relies on in its sleep is no more.
    pub(crate) wake: bool,
    pub(crate) requests: Vec<Request>,
    /// Peers that did not take a message.
    pub(crate) not_sent: Vec<(u64, SendError)>,
}

/// Work for the node's driver: proposals, messages, reports, each behind a lock that is held for a moment, and the notification of the
/// task that drives it. It is given when work comes to an empty queue, so a burst gives it once; for proposals and messages
/// [`NodeShared`](super::shared::NodeShared) gives it.
pub(crate) struct Mailbox {
    pub(crate) id: u64,
    pub(crate) group: GroupId,
    proposals: Mutex<Proposals>,
    inbound: Mutex<InboundQueues<Incoming>>,
    reports: Mutex<Reports>,
    /// Changed under their lock: most turns find none, and need not take it.
    has_reports: AtomicBool,
    notifier: Notifier,
    /// The same as `Proposals::closed`, for messages and requests, without the proposals' lock. A message may see it a moment late; nothing waits for messages.
    is_closed: AtomicBool,
    proposals_max: usize,
    proposal_bytes_max: usize,
    queue_bytes_max: usize,
    requests_max: usize,
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox")
            .field("id", &self.id)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

impl Mailbox {
    pub(crate) fn new(id: u64, group: GroupId, options: &RaftOptions, notifier: Notifier) -> Self {
        let limits = InboundLimits {
            messages_max: options.inbound_messages_max,
            bytes_max: options.inbound_bytes_max,
            ..InboundLimits::default()
        };
        Self {
            id,
            group,
            proposals: Mutex::default(),
            inbound: Mutex::new(InboundQueues::new(limits)),
            reports: Mutex::default(),
            has_reports: AtomicBool::new(false),
            notifier,
            is_closed: AtomicBool::new(false),
            proposals_max: options.proposals_max,
            proposal_bytes_max: options.proposal_bytes_max,
            queue_bytes_max: options.uncommitted_bytes_max,
            requests_max: options.reads_max,
        }
    }

    /// Gets the group driven by its task.
    pub(crate) fn notify(&self) {
        self.notifier.notify();
    }

    /// Returns true if the task has to give the group a place among those that go on.
    pub(crate) fn mark_ready(&self) -> bool {
        self.notifier.mark()
    }

    /// To be called by the task before it drives a group that was ready.
    pub(crate) fn begin_turn(&self) {
        self.notifier.begin();
    }

    /// Queues a proposal. Returns where its answer will be, and who sees to it.
    pub(crate) fn propose(&self, data: Bytes) -> Result<(Arc<Slot<Answer>>, Next), ProposeError> {
        self.check(&data)?;
        let mut proposals = self.proposals.lock();
        let slot = self.admit(&mut proposals, 1, data.len())?;
        let was_empty = proposals.waiting.is_empty();
        let token = Token::One(Answerer::new(Arc::clone(&slot)));
        proposals.waiting.push((data, token));
        let next = proposals.next(was_empty);
        drop(proposals);
        Ok((slot, next))
    }

    /// Queues proposals that have one answer together: all of them or none. Returns the same as [`propose`](Self::propose).
    pub(crate) fn propose_batch(
        &self,
        batch: Vec<Bytes>,
    ) -> Result<(Arc<Slot<Answer>>, Next), ProposeError> {
        for data in &batch {
            self.check(data)?;
        }
        let bytes = batch.iter().map(Bytes::len).sum();
        let mut proposals = self.proposals.lock();
        let slot = self.admit(&mut proposals, batch.len(), bytes)?;
        let was_empty = proposals.waiting.is_empty();
        let gathered = Batch::new(batch.len(), Arc::clone(&slot));
        let tokens = (0..batch.len()).map(|place| Token::Many(Arc::clone(&gathered), place));
        proposals.waiting.extend(batch.into_iter().zip(tokens));
        let next = proposals.next(was_empty);
        drop(proposals);
        Ok((slot, next))
    }

    fn check(&self, data: &Bytes) -> Result<(), ProposeError> {
        if data.is_empty() {
            return Err(ProposeError::Empty);
        }
        if data.len() > self.proposal_bytes_max {
            return Err(ProposeError::TooLarge {
                bytes: data.len(),
                limit: self.proposal_bytes_max,
            });
        }
        Ok(())
    }

    fn admit(
        &self,
        proposals: &mut Proposals,
        count: usize,
        bytes: usize,
    ) -> Result<Arc<Slot<Answer>>, ProposeError> {
        if let Some(reason) = &proposals.closed {
            return Err(ProposeError::Stopped(reason.clone()));
        }
        if proposals.waiting.len().saturating_add(count) > self.proposals_max {
            return Err(ProposeError::Busy {
                what: "proposals that wait",
                limit: self.proposals_max as u64,
            });
        }
        if proposals.bytes.saturating_add(bytes) > self.queue_bytes_max && proposals.bytes > 0 {
            return Err(ProposeError::Busy {
                what: "bytes of proposals that wait",
                limit: self.queue_bytes_max as u64,
            });
        }
        proposals.bytes += bytes;
        proposals.callers += 1;
        Ok(proposals
            .free
            .pop()
            .unwrap_or_else(|| Arc::new(Slot::new())))
    }

    /// A slot for a request that is no proposal.
    pub(crate) fn slot(&self) -> Arc<Slot<Answer>> {
        let free = self.proposals.lock().free.pop();
        free.unwrap_or_else(|| Arc::new(Slot::new()))
    }

    /// Takes a slot back, unless its answer may still come. `was_proposal` says that its caller is one of those counted.
    pub(crate) fn recycle(&self, mut slot: Arc<Slot<Answer>>, was_proposal: bool) {
        let is_free = Arc::get_mut(&mut slot).map(Slot::clear).is_some();
        let mut proposals = self.proposals.lock();
        proposals.callers -= usize::from(was_proposal);
        if is_free && proposals.free.len() < self.proposals_max {
            proposals.free.push(slot);
        }
    }

    /// Takes all queued proposals unless `hold(queued, callers)` is true. Returns true if they were held back. `callers` have a proposal queued or in flight,
    /// or an answer that they have not taken yet.
    pub(crate) fn take_proposals_unless(
        &self,
        hold: impl FnOnce(usize, usize) -> bool,
        empty: &mut Vec<(Bytes, Token)>,
    ) -> bool {
        let mut proposals = self.proposals.lock();
        if hold(proposals.waiting.len(), proposals.callers) {
            return true;
        }
        std::mem::swap(&mut proposals.waiting, empty);
        proposals.bytes = 0;
        false
    }

    pub(crate) fn proposals_waiting(&self) -> usize {
        self.proposals.lock().waiting.len()
    }

    /// Asks something. At the bound, and once the node has stopped, the request comes back.
    pub(crate) fn request(&self, request: Request) -> Result<(), Request> {
        let mut reports = self.reports.lock();
        let is_full =
            reports.requests.len() >= self.requests_max && !matches!(request, Request::Stop);
        // Under the lock that `close` takes after it said so: what comes later finds it said, and is not left there.
        if is_full || self.is_closed.load(Ordering::Relaxed) {
            return Err(request);
        }
        reports.requests.push(request);
        self.has_reports.store(true, Ordering::Release);
        drop(reports);
        if !mutant::is("request_without_notification") {
            self.notify();
        }
        Ok(())
    }

    pub(crate) fn requests_max(&self) -> usize {
        self.requests_max
    }

    pub(crate) fn report(&self, change: impl FnOnce(&mut Reports)) {
        let mut reports = self.reports.lock();
        change(&mut reports);
        self.has_reports.store(true, Ordering::Release);
        drop(reports);
        self.notify();
    }

    /// Notes that a peer did not take a message, for the next turn: it makes none necessary.
    pub(crate) fn note_not_sent(&self, peer: u64, error: SendError) {
        let mut reports = self.reports.lock();
        if !reports.not_sent.contains(&(peer, error)) {
            reports.not_sent.push((peer, error));
            self.has_reports.store(true, Ordering::Release);
        }
    }

    /// Swaps the reports with empty ones. A report that comes meanwhile notifies the task again.
    pub(crate) fn take_reports(&self, empty: &mut Reports) {
        if self.has_reports.load(Ordering::Acquire) {
            let mut reports = self.reports.lock();
            self.has_reports.store(false, Ordering::Relaxed);
            std::mem::swap(&mut *reports, empty);
        }
    }

    /// Queues a message, unless the node has stopped. Returns true if the queue was empty: the caller must schedule a drive.
    pub(crate) fn deliver(
        &self,
        class: MessageClass,
        bytes: usize,
        incoming: Incoming,
    ) -> Result<bool, DeliverError> {
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(DeliverError::Stopped);
        }
        let mut inbound = self.inbound.lock();
        let was_empty = inbound.is_empty();
        inbound
            .push(class, bytes, incoming)
            .map_err(|_| DeliverError::Full)?;
        Ok(was_empty)
    }

    /// Moves up to `limit` messages into `to`, most urgent first; whether there are more.
    pub(crate) fn take_messages(&self, to: &mut Vec<Incoming>, limit: usize) -> bool {
        let mut inbound = self.inbound.lock();
        while to.len() < limit {
            let Some(incoming) = inbound.pop() else {
                return false;
            };
            to.push(incoming);
        }
        !inbound.is_empty()
    }

    /// Gives memory back that is kept for the next proposals, messages and requests.
    pub(crate) fn shrink_to_fit(&self) {
        let mut proposals = self.proposals.lock();
        proposals.waiting.shrink_to_fit();
        let free = std::mem::take(&mut proposals.free);
        drop(proposals);
        drop(free);
        self.inbound.lock().shrink_to_fit();
        self.reports.lock().requests.shrink_to_fit();
    }

    /// Takes no more proposals. Queued ones are dropped, which answers them.
    pub(crate) fn close(&self, reason: &StopReason) {
        let mut proposals = self.proposals.lock();
        proposals.closed = Some(reason.clone());
        self.is_closed.store(true, Ordering::Relaxed);
        let waiting = std::mem::take(&mut proposals.waiting);
        drop(proposals);
        if mutant::is("closed_and_not_answered") {
            std::mem::forget(waiting);
            return;
        }
        for (_, token) in waiting {
            let stopped = crate::core::Reply::Failed(ProposeError::Stopped(reason.clone()));
            if let Some(waker) = token.reply(stopped) {
                wake(waker);
            }
        }
        let reports = std::mem::take(&mut *self.reports.lock());
        // What is asked there is answered by being dropped, outside of the lock.
        drop(reports);
    }

    pub(crate) fn closed(&self) -> Option<StopReason> {
        self.proposals.lock().closed.clone()
    }
}
