//! What clients hold.

use super::answer::{Answer, Token};
use super::drive::Published;
use super::inbox::Inbox;
use super::mailbox::{Mailbox, Request};
use super::shared::NodeShared;
use super::slot::{Answerer, Slot};
use super::stats::RaftStats;
use crate::GroupId;
use crate::core::{MembershipChange, RaftReport, Reply};
use crate::error::{ProposeError, ReadError, StopReason};
use crate::members::Member;
use crate::transport::DeliverError;
use bytes::Bytes;
use perf_atomics::RaftStatus;
use raft::eraftpb::ConfState;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::coop::poll_proceed;

/// A running node, as its clients see it. Clones are cheap and all the same node.
///
/// The node runs until [`shutdown`](Self::shutdown) or the end of its runtime, whether there are handles or not. Every request gets an
/// answer, whatever happens to the node.
#[derive(Clone, Debug)]
pub struct RaftHandle {
    pub(crate) shared: Arc<NodeShared>,
    pub(crate) published: Arc<Published>,
    pub(crate) ended: watch::Receiver<Option<StopReason>>,
}

/// A slot that goes back when its waiter is done or gives up.
struct Waiting<'a> {
    slot: Option<Arc<Slot<Answer>>>,
    is_proposal: bool,
    mailbox: &'a Mailbox,
}

impl Waiting<'_> {
    async fn answer(&mut self) -> Answer {
        poll_fn(|context| {
            // A caller that is alone has its answer at once, time and again: others of its thread shall have their turn.
            let turn = ready!(poll_proceed(context));
            let answer = match &self.slot {
                Some(slot) => slot.poll(context.waker()),
                None => Poll::Ready(Answer::Gone),
            };
            if answer.is_ready() {
                turn.made_progress();
            }
            answer
        })
        .await
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.mailbox.recycle(slot, self.is_proposal);
        }
    }
}

impl RaftHandle {
    /// Proposes a command and waits for the state machine's response to it, on this node.
    ///
    /// Durable on a quorum by then. Many callers' proposals go through Raft as one batch; a caller that is alone drives the node itself instead of waking the node's
    /// task. Queueing allocates nothing in steady state.
    /// Dropping the future does not take the proposal back.
    ///
    /// Answered within 60 election timeouts, as [`Unknown`](ProposeError::Unknown) if it is not committed by then (the disks of a quorum hang), plus the time that the state
    /// machine takes for what is before it.
    ///
    /// # Errors
    /// [`ProposeError`], which says whether the command may have been applied.
    pub async fn propose(&self, data: Bytes) -> Result<Bytes, ProposeError> {
        let (slot, next) = self.mailbox().propose(data)?;
        self.shared.drive_next(next);
        match self.wait(slot, true).await {
            Answer::Response(response) => Ok(response),
            Answer::Reply(Reply::Failed(error)) => Err(error),
            _ => Err(ProposeError::Unknown),
        }
    }

    /// Proposes several commands, in their order, for one wake-up when all have their answers. They are applied in this order, others'
    /// commands maybe between them; some may fail where others do not.
    ///
    /// # Errors
    /// [`ProposeError`] if none of them was queued; else one result for each.
    pub async fn propose_batch(
        &self,
        batch: Vec<Bytes>,
    ) -> Result<Vec<Result<Bytes, ProposeError>>, ProposeError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let (slot, next) = self.mailbox().propose_batch(batch)?;
        self.shared.drive_next(next);
        match self.wait(slot, true).await {
            Answer::Batch(results) => Ok(results),
            Answer::Reply(Reply::Failed(error)) => Err(error),
            _ => Err(ProposeError::Unknown),
        }
    }

    /// Waits until a read of this node's state machine is linearizable: it then shows everything that was acknowledged anywhere
    /// before the call. Returns the state machine's index. On a follower it costs one more message to the leader and back.
    ///
    /// Reads that come together share one round of heartbeats. Answered within four election timeouts.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_index(&self) -> Result<u64, ReadError> {
        self.read(Request::Read).await
    }

    /// The same without a round of messages, on a leader that heard of a quorum so recently that no other can lead yet.
    ///
    /// Relies on clocks: [`RaftOptions::clock_drift_max_percent`](crate::RaftOptions::clock_drift_max_percent) must hold. Needs
    /// [`RaftOptions::lease_reads`](crate::RaftOptions::lease_reads) on all nodes. Answered at once, or within four election timeouts if the state machine is behind.
    ///
    /// # Errors
    /// [`ReadError::NoLease`] where there is none: use [`read_index`](Self::read_index) then.
    pub async fn lease_read(&self) -> Result<u64, ReadError> {
        self.read(Request::LeaseRead).await
    }

    /// Role, term, leader, commit and applied index at one moment: a few loads, never a lock.
    #[inline]
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        self.published.status.read()
    }

    /// What the stages of the node did, as of its last tick.
    #[must_use]
    pub fn stats(&self) -> RaftStats {
        *self.published.stats.lock()
    }

    /// The members as this node knows them, the leader's view of its peers, and what is the matter, as of the node's last tick.
    #[must_use]
    pub fn report(&self) -> RaftReport {
        self.published.report.borrow().clone()
    }

    /// The members with their roles and incarnations, as of the node's last tick.
    #[must_use]
    pub fn membership(&self) -> Vec<Member> {
        self.published.report.borrow().members.clone()
    }

    /// Yields each new [`report`](Self::report), at most one for each tick. Does not end with the node: see [`stopped`](Self::stopped).
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<RaftReport> {
        self.published.report.subscribe()
    }

    /// Waits until a leader is known to this node, and returns its id; `None` after `timeout`, or once the node has stopped.
    pub async fn wait_for_leader(&self, timeout: Duration) -> Option<u64> {
        let mut reports = self.watch();
        let known = reports.wait_for(|report| report.leader_id != 0);
        let stopped = self.stopped();
        tokio::select! {
            found = tokio::time::timeout(timeout, known) => {
                found.ok()?.ok().map(|report| report.leader_id)
            }
            _ = stopped => None,
        }
    }

    /// Changes the membership, several nodes at once by joint consensus. Returns the new one once the group is in it.
    ///
    /// Start new nodes without [`bootstrap`](crate::RaftNodeBuilder::bootstrap) and make them reachable first. A new voter is a learner until it
    /// has caught up, so its lag never costs the group its quorum. Answered within ten election timeouts.
    ///
    /// A member whose disk was lost needs no change: start it with its id and an empty log, and the leader takes it in again.
    ///
    /// # Errors
    /// [`ProposeError::NotCaughtUp`] if a new voter has not caught up by then: it stays a learner. [`ProposeError::Refused`] if fewer voters would be alive than
    /// a quorum of them. [`ProposeError::NotFormed`] while the first voters of a new group are missing. Others as for a proposal.
    pub async fn change_membership(
        &self,
        changes: Vec<MembershipChange>,
    ) -> Result<ConfState, ProposeError> {
        self.ask_for_change(changes, false).await
    }

    /// The same, also where too few of the voters that the change leads to are alive, or some of the first voters have never been heard of. The group may have no
    /// quorum afterwards, and no way back.
    ///
    /// # Errors
    /// As [`change_membership`](Self::change_membership), but for what it does not check.
    pub async fn force_change_membership(
        &self,
        changes: Vec<MembershipChange>,
    ) -> Result<ConfState, ProposeError> {
        self.ask_for_change(changes, true).await
    }

    async fn ask_for_change(
        &self,
        changes: Vec<MembershipChange>,
        forced: bool,
    ) -> Result<ConfState, ProposeError> {
        let answer = self
            .ask(|token| Request::ChangeMembership {
                changes,
                forced,
                token,
            })
            .await;
        match answer? {
            Answer::Reply(Reply::Membership(state)) => Ok(*state),
            Answer::Reply(Reply::Failed(error)) => Err(error),
            _ => Err(ProposeError::Unknown),
        }
    }

    /// Hands the leadership to a voter and waits until it leads. Proposals are dropped meanwhile.
    ///
    /// # Errors
    /// [`ProposeError::ProposalDropped`] if it does not lead within two election timeouts, and others.
    pub async fn transfer_leader(&self, to: u64) -> Result<(), ProposeError> {
        match self.ask(|token| Request::TransferLeader(to, token)).await? {
            Answer::Reply(Reply::Transferred) => Ok(()),
            Answer::Reply(Reply::Failed(error)) => Err(error),
            _ => Err(ProposeError::Unknown),
        }
    }

    /// Makes a snapshot now and waits until it is durable; the log before it may go. Returns its index. Answered within 1000 election timeouts.
    ///
    /// # Errors
    /// [`ProposeError`] if the node stops.
    pub async fn snapshot(&self) -> Result<u64, ProposeError> {
        match self.ask(Request::Snapshot).await? {
            Answer::Reply(Reply::Snapshot(index)) => Ok(index),
            Answer::Reply(Reply::Failed(error)) => Err(error),
            _ => Err(ProposeError::Unknown),
        }
    }

    /// Takes a frame from a peer, for transports of your own: the same as [`Inbox::deliver`].
    ///
    /// # Errors
    /// As [`Inbox::deliver`].
    pub fn deliver(&self, frame: Bytes) -> Result<(), DeliverError> {
        self.inbox().deliver(frame)
    }

    /// Where frames from peers come in.
    #[must_use]
    pub fn inbox(&self) -> Inbox {
        Inbox::of_group(&self.shared)
    }

    /// This node's id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.mailbox().id
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.mailbox().group
    }

    /// Stops the node. All callers that wait are answered, the jobs that the log has taken are written, and its files are closed when this returns.
    /// A leader should [`transfer_leader`](Self::transfer_leader) first. It takes as long as the calls of the log and the state machine that are under way.
    pub async fn shutdown(&self) {
        self.stop();
        self.stopped().await;
    }

    /// Asks the node to stop, without waiting for it.
    pub(crate) fn stop(&self) {
        // The bound on requests does not hold for this one.
        let _ = self.mailbox().request(Request::Stop);
    }

    pub(crate) fn has_stopped(&self) -> bool {
        // The sender may be gone with the runtime.
        self.ended.borrow().is_some() || self.ended.has_changed().is_err()
    }

    /// Waits for the end of the node and says why it ended.
    pub async fn stopped(&self) -> StopReason {
        let mut ended = self.ended.clone();
        let reason = ended.wait_for(Option::is_some).await;
        // An error means that the task is gone with its runtime.
        reason
            .ok()
            .and_then(|reason| reason.clone())
            .unwrap_or(StopReason::Shutdown)
    }

    fn mailbox(&self) -> &Mailbox {
        &self.shared.mailbox
    }

    async fn wait(&self, slot: Arc<Slot<Answer>>, is_proposal: bool) -> Answer {
        let mut waiting = Waiting {
            slot: Some(slot),
            is_proposal,
            mailbox: self.mailbox(),
        };
        waiting.answer().await
    }

    fn ask(
        &self,
        request: impl FnOnce(Token) -> Request,
    ) -> impl Future<Output = Result<Answer, ProposeError>> {
        let slot = self.mailbox().slot();
        let request = request(Token::One(Answerer::new(Arc::clone(&slot))));
        let asked = match self.mailbox().closed() {
            Some(reason) => Err(ProposeError::Stopped(reason)),
            None => self.mailbox().request(request).map_err(|_| {
                // It may have stopped since.
                let stopped = self.mailbox().closed().map(ProposeError::Stopped);
                stopped.unwrap_or(ProposeError::Busy {
                    what: "requests that wait",
                    limit: self.mailbox().requests_max() as u64,
                })
            }),
        };
        async move {
            asked?;
            match self.wait(slot, false).await {
                Answer::Gone => Err(ProposeError::Stopped(
                    self.mailbox().closed().unwrap_or(StopReason::Shutdown),
                )),
                answer => Ok(answer),
            }
        }
    }

    async fn read(&self, request: impl FnOnce(Token) -> Request) -> Result<u64, ReadError> {
        match self.ask(request).await {
            Ok(Answer::Reply(Reply::Read(index))) => Ok(index),
            Ok(Answer::Reply(Reply::ReadFailed(error))) => Err(error),
            Ok(_) => Err(ReadError::TimedOut),
            Err(ProposeError::Busy { what, limit }) => Err(ReadError::Busy { what, limit }),
            Err(ProposeError::Stopped(reason)) => Err(ReadError::Stopped(reason)),
            Err(_) => Err(ReadError::TimedOut),
        }
    }
}
