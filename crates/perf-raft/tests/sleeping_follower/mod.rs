//! A follower that sleeps, and what it promised its leader: no vote for another within an election timeout of the leader's last message.

use bytes::Bytes;
use perf_raft::codec::{Beat, Body, Frame, FrameHeader, SleepKind, SleepNote};
use perf_raft::core::{
    ApplyJob, Core, CoreConfig, HostView, Liveness, Outputs, Reliance, bootstrap_state,
};
use perf_raft::eraftpb::{Message, MessageType};
use perf_raft::{EntryMemory, GroupId, RaftOptions};

const TERM: u64 = 2;
const LEADER: u64 = 1;
const OTHER: u64 = 3;

struct Follower {
    core: Core<()>,
    sequence: u64,
}

impl Follower {
    fn new() -> Self {
        let config = CoreConfig {
            id: 2,
            group: GroupId(0),
            options: RaftOptions::default(),
            seed: 1,
            incarnation: 12,
            session: 22,
            entry_memory: EntryMemory::of_process(),
        };
        let state = bootstrap_state(&[1, 2, 3], Bytes::new());
        let mut core = Core::new(config, state).expect("a sound start");
        core.allow_sleep(1, HostView::new(7, &[]));
        Self { core, sequence: 0 }
    }

    /// Does what the core says, and returns its frames.
    fn settle(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let mut out = Outputs::default();
            self.core.poll(&mut out);
            if out.is_empty() {
                return frames;
            }
            frames.append(&mut out.frames);
            if let Some(job) = out.log_jobs.last() {
                self.core.persisted(job.sequence);
            }
            for job in out.apply_jobs {
                match job {
                    ApplyJob::Apply { index, .. } => self.core.applied(index),
                    ApplyJob::Restore(snapshot) => self.core.applied(snapshot.metadata.index),
                    _ => {}
                }
            }
        }
    }

    fn receive(&mut self, from: u64, body: Body) -> Vec<Frame> {
        self.sequence += 1;
        let header = FrameHeader {
            to: 2,
            from,
            session: 100 + from,
            sequence: self.sequence,
            incarnation: 10 + from,
            ..FrameHeader::default()
        };
        self.core.receive(Frame { header, body });
        self.settle()
    }

    fn message(&mut self, from: u64, kind: MessageType, term: u64) -> Vec<Frame> {
        self.message_at(from, kind, term, 1)
    }

    /// Of a node that has committed as much.
    fn message_at(&mut self, from: u64, kind: MessageType, term: u64, commit: u64) -> Vec<Frame> {
        let mut message = Message {
            from,
            to: 2,
            term,
            index: 1,
            log_term: 1,
            commit,
            ..Message::default()
        };
        message.set_msg_type(kind);
        self.receive(from, Body::Raft(message))
    }

    /// Whether it would vote for another.
    fn votes_for_another(&mut self) -> bool {
        let frames = self.message(OTHER, MessageType::MsgRequestPreVote, TERM + 1);
        frames.iter().any(|frame| match &frame.body {
            Body::Raft(message) => {
                message.get_msg_type() == MessageType::MsgRequestPreVoteResponse && !message.reject
            }
            _ => false,
        })
    }
}

/// Its leader's host is silent. So many ticks after the leader's last message, is the promise as it must be?
///
/// # Errors
/// What is wrong.
pub(crate) fn promise_holds() -> Result<(), String> {
    let tick_ns = RaftOptions::default().tick.as_nanos() as u64;
    let election_ticks = RaftOptions::default().election_ticks as u64;
    for (passed, must_vote) in [
        (0, false),
        (election_ticks - 1, false),
        (election_ticks, true),
        (1000, true),
    ] {
        let mut follower = Follower::new();
        follower.settle();
        follower.message(LEADER, MessageType::MsgHeartbeat, TERM);
        let ask = SleepNote {
            kind: SleepKind::Ask,
            term: TERM,
            index: 1,
            host: 9,
            stops: 0,
        };
        follower.receive(LEADER, Body::Sleep(ask));
        if !follower.core.is_asleep() {
            return Err("it does not sleep as it was asked to".to_owned());
        }
        // Long after that the leader is awake again, and confirms a read. The follower sleeps on.
        let start = 5000 * tick_ns;
        follower.core.set_now(start);
        let answers = follower.message(LEADER, MessageType::MsgHeartbeat, TERM);
        if !follower.core.is_asleep() || answers.is_empty() {
            return Err(format!(
                "a heartbeat is answered by {answers:?}, asleep: {}",
                follower.core.is_asleep()
            ));
        }
        follower.core.set_now(start + passed * tick_ns);
        follower.core.allow_sleep(1, HostView::new(7, &[LEADER]));
        follower.core.wake();
        follower.settle();
        let votes = follower.votes_for_another();
        if votes != must_vote {
            return Err(format!(
                "{passed} ticks after its leader's last message it votes for another: {votes}"
            ));
        }
    }
    Ok(())
}

/// A node that is no member asks for a vote. Is it told, asleep or not, unless it may know more?
///
/// # Errors
/// What is wrong.
pub(crate) fn a_removed_node_is_told() -> Result<(), String> {
    for (is_asleep, commit, must_tell) in [(false, 1, true), (true, 1, true), (true, 2, false)] {
        let mut follower = Follower::new();
        follower.settle();
        follower.message(LEADER, MessageType::MsgHeartbeat, TERM);
        if is_asleep {
            let ask = SleepNote {
                kind: SleepKind::Ask,
                term: TERM,
                index: 1,
                host: 9,
                stops: 0,
            };
            follower.receive(LEADER, Body::Sleep(ask));
        }
        let frames = follower.message_at(4, MessageType::MsgRequestPreVote, TERM + 1, commit);
        let is_notice = |frame: &Frame| {
            frame.header.to == 4 && matches!(&frame.body, Body::Notice(notice) if notice.removed)
        };
        let tells = frames.iter().any(is_notice);
        if tells != must_tell || follower.core.is_asleep() != is_asleep {
            return Err(format!(
                "asleep: {is_asleep}, the node has committed {commit}: it is told: {tells}"
            ));
        }
    }
    Ok(())
}

/// A host has been heard in its present run, in which a group has stopped. Is a group refused that would rely on less?
///
/// # Errors
/// What is wrong.
pub(crate) fn an_outdated_note_is_refused() -> Result<(), String> {
    const RUN: u64 = 5;
    let mut liveness = Liveness::new(2, 7, 10, 2);
    let header = FrameHeader {
        to: 2,
        from: LEADER,
        session: RUN,
        sequence: 1,
        ..FrameHeader::default()
    };
    let mut beat = Beat::default();
    (beat.stops, beat.stopped) = (1, vec![3]);
    liveness.heard(&header, &beat);
    for (run, stops, is_taken) in [(RUN - 1, 1, false), (RUN, 0, false), (RUN, 1, true)] {
        let mut reliance = Reliance::default();
        reliance.hosts = vec![(LEADER, run, stops)];
        if liveness.fell_asleep(GroupId(3), reliance) != is_taken {
            return Err(format!(
                "it relies on run {run} after {stops} stops: {}",
                !is_taken
            ));
        }
    }
    Ok(())
}
