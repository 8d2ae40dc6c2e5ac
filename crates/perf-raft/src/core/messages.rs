//! Frames from and to peers.

use super::sending::Delivered;
use super::validate::CHANGE_BYTES_MAX;
use super::{Core, parts, validate};
use crate::codec::{self, Body, Frame, FrameHeader, MessagePart, Notice};
use crate::dedup::Delivery;
use crate::members::PINNED;
use crate::primitive::mutant;
use bytes::Bytes;
use raft::ProgressState;
use raft::eraftpb::{Entry, Message, MessageType};

/// After so many frames of one append to a peer that takes short ones no other entry is begun: a thousand would crowd out what else it gets.
const SHORT_FRAMES_MAX: usize = 64;

/// No less than a frame takes beside its message.
const HEAD_ROOM_BYTES: usize = 128;

/// Raft's mark of an election that the leader itself asked for.
const CAMPAIGN_TRANSFER: &[u8] = b"CampaignTransfer";

impl<T> Core<T> {
    /// A frame as it came from a peer; one that cannot be read is dropped and counted too.
    pub fn receive_encoded(&mut self, frame: Bytes) {
        match Frame::decode_detached(frame) {
            Ok(frame) => self.receive(frame),
            Err(_) => {
                self.stats.messages_received += 1;
                self.stats.messages_invalid += 1;
            }
        }
    }

    /// A frame from a peer, with payloads that may stay in the log: of [`Frame::decode_detached`]. Those that came before, are for others or could not be from a correct peer are dropped and counted.
    pub fn receive(&mut self, frame: Frame) {
        self.stats.messages_received += 1;
        let Frame { header, body } = frame;
        let for_us = (header.to == self.id || header.to == 0) && header.group == self.group;
        if !for_us || header.from == 0 || header.from == self.id {
            self.stats.messages_invalid += 1;
            return;
        }
        if self.is_foreign(&header, &body) {
            return;
        }
        // Urgent frames overtake others, so each class is a stream of its own.
        let class = body.class();
        let connection = super::mix(header.session ^ super::mix(header.from ^ class as u64));
        let delivery = self.dedup.check_frame(connection, header.sequence, || {
            content_hash(header.from, &body)
        });
        if delivery != Delivery::Fresh {
            self.stats.messages_duplicate += 1;
            return;
        }
        match body {
            Body::Raft(message) => self.receive_message(&header, message),
            Body::Chunk(chunk) => self.receive_chunk(header, *chunk),
            Body::Ack(ack) if self.ack_counts(header.from, header.incarnation) => {
                self.receive_ack(header.from, ack)
            }
            Body::Ack(_) => self.stats.answers_of_strangers += 1,
            Body::Notice(notice) => self.receive_notice(&header, notice),
            Body::Part(part) => self.receive_part(&header, part),
            Body::Sleep(note) => self.receive_sleep_note(&header, note),
            // For hosts.
            Body::Beat(_) => self.stats.messages_invalid += 1,
        }
    }

    /// Whether the sender belongs to another group, or leads or votes in one that was never formed, while this node's was.
    fn is_foreign(&mut self, header: &FrameHeader, body: &Body) -> bool {
        let (theirs, ours) = (header.cluster & !PINNED, self.cluster_now & !PINNED);
        if let Body::Notice(_) = body {
            return false;
        }
        let is_other = theirs != 0 && ours != 0 && theirs != ours;
        // Every voter of a formed group has the table. Who has none has lost its disk, or has not joined: it may answer, and no more.
        let is_unformed = self.formed_now && header.cluster & PINNED == 0;
        let is_request = match body {
            Body::Raft(message) => !super::membership::is_answer(message.get_msg_type()),
            Body::Chunk(_) | Body::Part(_) => true,
            Body::Ack(_) | Body::Notice(_) | Body::Sleep(_) | Body::Beat(_) => false,
        };
        let is_refused = is_other || (is_unformed && is_request);
        if !is_refused {
            return false;
        }
        self.stats.messages_foreign += u64::from(is_other);
        if is_other {
            self.send_notice(header.from, false);
        }
        !mutant::is("foreign_counts")
    }

    /// To a node of another group at most once in an election timeout, or whenever it is asked in its sleep, which has no ticks. A node that was
    /// removed asks no more often than that, and is always answered: others may be left over too.
    pub(super) fn send_notice(&mut self, to: u64, removed: bool) {
        let due = self.noticed_tick + self.options.election_ticks as u64;
        let is_due = removed || self.ticks >= due || self.is_asleep();
        let Some(now) = self.configuration().filter(|_| is_due) else {
            return;
        };
        let founders = now.members.founders.clone();
        self.noticed_tick = self.ticks;
        let notice = Notice {
            founders,
            removed,
            address: String::new(),
        };
        let frame = self.frame(to, Body::Notice(notice));
        self.out.frames.push(frame);
    }

    fn receive_notice(&mut self, header: &FrameHeader, notice: Notice) {
        let from = header.from;
        let ours = self.configuration().map(|now| &now.members.founders);
        if ours.is_some_and(|ours| *ours == notice.founders) {
            self.removed |= notice.removed;
            self.receive_address(header, notice.address);
        } else if notice.founders.len() <= super::membership::MEMBERS_MAX {
            self.foreign = Some((from, notice.founders));
        }
    }

    fn receive_part(&mut self, header: &FrameHeader, part: MessagePart) {
        let entry_bytes_max = self.options.proposal_bytes_max.max(CHANGE_BYTES_MAX);
        let bytes_max = entry_bytes_max.saturating_add(codec::ENTRY_ROOM_BYTES);
        match self.parts.add(header.session, part, bytes_max) {
            Ok(None) => {}
            Ok(Some(_)) if mutant::is("parts_lost") => {}
            Ok(Some(whole)) => match codec::decode(whole) {
                Ok(message) => self.receive_message(header, message),
                Err(_) => self.stats.messages_invalid += 1,
            },
            Err(parts::Invalid) => self.stats.messages_invalid += 1,
        }
    }

    fn receive_message(&mut self, header: &FrameHeader, mut message: Message) {
        let from = header.from;
        let sound = message.from == from && validate::check(&message, self.id).is_ok();
        // Snapshots come in parts.
        if !sound || message.get_msg_type() == MessageType::MsgSnapshot {
            self.stats.messages_invalid += 1;
            return;
        }
        message.to = self.id;
        if !self.counts(&message, header) {
            return;
        }
        if message.get_msg_type() == MessageType::MsgHeartbeat
            && (message.term >= self.node.raft.term || mutant::is("former_heartbeat_counts"))
        {
            self.handover.heartbeat(header);
        }
        self.tell_removed(&message);
        self.lower_commit(&mut message);
        if self.send_to_forked(&message) {
            return;
        }
        self.correct_rejection(&mut message);
        if self.must_ignore(&message, header) {
            return;
        }
        let is_append = message.get_msg_type() == MessageType::MsgAppend;
        if is_append && self.contradicts_committed(&message) {
            self.refuse_contradiction(&message);
            return;
        }
        if is_append && !message.entries.is_empty() && self.is_behind() {
            self.stats.appends_refused += 1;
            return;
        }
        self.note_message(&message);
        // What raft-rs says no to is of no use here: an answer from a node that left.
        let _ = self.node.step(message);
        self.draw_timeout();
    }

    /// A node that asks for votes and is no member of the present membership learns that.
    fn tell_removed(&mut self, message: &Message) {
        match message.get_msg_type() {
            MessageType::MsgRequestPreVote | MessageType::MsgRequestVote
                if self.is_removed(message.from, message.commit) =>
            {
                self.send_notice(message.from, true);
            }
            MessageType::MsgAppend | MessageType::MsgHeartbeat => self.removed = false,
            _ => {}
        }
    }

    /// Whether a node that knows of no entries behind `index` was removed. A leader knows. So does whoever has applied as much: the node may know
    /// none of those that lead now.
    pub(super) fn is_removed(&self, id: u64, index: u64) -> bool {
        let knows = self.is_leader()
            || (index <= self.handed.min(self.applied) && !mutant::is("leader_alone_tells"));
        knows && self.node.raft.prs().get(id).is_none()
    }

    /// raft-rs panics on a heartbeat that commits what this node does not have. The leader believes that it has: it had, before its disk was
    /// lost. The heartbeat is answered all the same, or the leader would take the node for dead and never learn what it needs.
    fn lower_commit(&self, message: &mut Message) {
        if message.get_msg_type() == MessageType::MsgHeartbeat {
            message.commit = message.commit.min(self.node.raft.raft_log.last_index());
        }
    }

    /// A rejection that was overtaken by later answers may name a place before what the peer is known to have. raft-rs 0.7.0 would go back to
    /// there (its issue 557), and send a snapshot to a peer that needs none.
    fn correct_rejection(&self, message: &mut Message) {
        let is_rejection = message.get_msg_type() == MessageType::MsgAppendResponse
            && message.reject
            && message.request_snapshot == 0
            && message.term == self.node.raft.term
            && self.is_leader();
        if !is_rejection || mutant::is("late_rejection") {
            return;
        }
        let matched = self.node.raft.prs().get(message.from);
        let matched = matched.map_or(0, |progress| progress.matched);
        let log = &self.node.raft.raft_log;
        let next = match message.log_term {
            0 => message.reject_hint,
            term => log.find_conflict_by_term(message.reject_hint, term).0,
        };
        if next < matched {
            (message.reject_hint, message.log_term) = (matched, 0);
        }
    }

    fn must_ignore(&self, message: &Message, header: &FrameHeader) -> bool {
        match message.get_msg_type() {
            // A leader from before this node's restart may hold a lease that this node promised to respect.
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
                self.ticks < self.silent_ticks && message.context != CAMPAIGN_TRANSFER
            }
            // raft-rs would campaign, which it cannot while a snapshot is being restored, or entries that it would look at are on disk.
            MessageType::MsgTimeoutNow => {
                self.restoring.is_some()
                    || self.is_replaying()
                    || !self.is_itself()
                    || !self
                        .handover
                        .is_timely(header, &message.context, self.session)
            }
            // A follower's read, while another group may have answered clients.
            MessageType::MsgReadIndex => self.is_leader() && !self.may_answer(),
            // A rejection that is of no use at all: the peer has said since that it has the entry. Or a founder that is left over says, to a snapshot of less,
            // what it has committed itself: more than this leader has.
            MessageType::MsgAppendResponse => {
                if self.is_beyond_log(message) {
                    return true;
                }
                let progress = self.node.raft.prs().get(message.from);
                let is_late = progress.is_some_and(|progress| {
                    message.term == self.node.raft.term
                        && message.reject
                        && message.request_snapshot == 0
                        && message.index <= progress.matched
                });
                is_late && !mutant::is("late_rejection")
            }
            _ => false,
        }
    }

    /// Whether a peer says to this leader that it has entries which the leader has not.
    fn is_beyond_log(&self, message: &Message) -> bool {
        let raft = &self.node.raft;
        self.is_leader()
            && message.term == raft.term
            && !message.reject
            && message.index > raft.raft_log.last_index()
    }

    /// Whether more entries would go beyond what a follower may hold, and it will have room later.
    ///
    /// A log of nothing but entries that are not applied gets no shorter by waiting, and memory is free only once what is committed is applied. A new
    /// leader can commit what it finds with an entry of its own term only, so that is taken: else the group would stand still for ever.
    fn is_behind(&self) -> bool {
        let (raft_log, view) = (&self.node.raft.raft_log, self.node.store());
        let is_crowded = raft_log.applied < raft_log.committed && view.excess(2) > 0;
        let is_full = view.bytes() > 2 * self.options.log_bytes_max;
        // A durable machine says up to which command it is: entries of Raft's own behind that stay.
        let limit = match self.is_machine_durable {
            true => self.applied.min(self.last_command),
            false => self.applied,
        };
        let will_shrink = view.first() <= limit || mutant::is("full_log_takes_nothing");
        is_crowded
            || self.backlog.commands() > 2 * self.options.unapplied_entries_max
            || (is_full && will_shrink)
    }

    pub(super) fn frame(&mut self, to: u64, body: Body) -> Frame {
        self.sequence += 1;
        self.stats.messages_sent += 1;
        let header = FrameHeader {
            to,
            from: self.id,
            group: self.group,
            session: self.session,
            sequence: self.sequence,
            cluster: self.cluster_now,
            incarnation: self.incarnation,
        };
        Frame { header, body }
    }

    /// Adds frames of a message to `frames`. A snapshot becomes a transfer, whose parts are sent as the peer takes them.
    pub(super) fn put_frames(&mut self, mut message: Message, frames: &mut Vec<Frame>) {
        if message.get_msg_type() == MessageType::MsgTimeoutNow {
            let session = self.session_of(message.to);
            message.context = Bytes::copy_from_slice(&session.to_le_bytes());
            let last_round = self.reads.last_round();
            self.handover.told(message.to, message.term, last_round);
        }
        if message.get_msg_type() == MessageType::MsgSnapshot {
            self.begin_transfer(message);
            return;
        }
        // Not a fault, but what few simulated appends are long enough for.
        let entries_max = if mutant::is("short_appends") {
            2
        } else {
            codec::ENTRIES_MAX
        };
        // Raft adds what was just proposed to what the log has for a peer, whatever that comes to.
        let limit = self.frame_limit(message.to);
        let room = limit.map_or(usize::MAX, |limit| {
            limit.saturating_sub(codec::ENTRY_ROOM_BYTES)
        });
        let bytes_max = self.options.message_bytes_max.min(room);
        let entries = &message.entries;
        let is_long = entries.len() > entries_max
            || entries.iter().map(codec::entry_len_max).sum::<usize>() > bytes_max;
        if !is_long {
            frames.push(self.frame(message.to, Body::Raft(message)));
            return;
        }
        let before = frames.len();
        for part in split_append(message, entries_max, bytes_max) {
            if limit.is_some() && frames.len() - before >= SHORT_FRAMES_MAX {
                // The peer takes what it got, and Raft goes on from there.
                return;
            }
            let (to, index) = (part.to, part.index + 1);
            let frame_bytes = || codec::encoded_len(&part) + HEAD_ROOM_BYTES;
            let too_long = limit.and_then(|limit| Some(frame_bytes()).filter(|len| *len > limit));
            let Some(bytes) = too_long else {
                frames.push(self.frame(to, Body::Raft(part)));
                continue;
            };
            self.part_count += 1;
            let Some(parts) = parts::split(&part, self.part_count, room) else {
                // Raft tries again after each heartbeat, and the peer may start again with a higher limit.
                self.peer_limits.stuck(to, index, bytes);
                return;
            };
            for part in parts {
                frames.push(self.frame(to, Body::Part(part)));
            }
        }
    }

    /// The longest frame that a peer takes, if it is known to take shorter ones than this node.
    pub(super) fn frame_limit(&mut self, peer: u64) -> Option<usize> {
        let session = self.session_of(peer);
        self.peer_limits.of(peer, session)
    }

    /// The lowest index up to which a live peer has everything, on a leader.
    pub(super) fn lowest_of_live_peers(&self) -> Option<u64> {
        let peers = self.node.raft.prs().iter();
        let live =
            peers.filter(|(id, _)| self.is_leader() && **id != self.id && self.is_live(**id));
        live.map(|(_, progress)| match progress.state {
            // Entries on their way may be lost: they must be there to be sent again.
            ProgressState::Replicate => progress.matched,
            // A peer that has got a snapshot, and has not said so yet, gets what comes after it next.
            ProgressState::Probe | ProgressState::Snapshot => {
                progress.matched.max(progress.next_idx.saturating_sub(1))
            }
        })
        .min()
    }

    /// The lowest index after which a peer needs the log, that is getting a snapshot or has just got one.
    pub(super) fn lowest_transfer(&self) -> Option<u64> {
        let peers = self.node.raft.prs().iter();
        let snapshots = peers.filter(|(_, progress)| progress.state == ProgressState::Snapshot);
        let waiting = snapshots.map(|(_, progress)| progress.pending_snapshot);
        let matched = |peer: &Delivered| self.node.raft.prs().get(peer.to).map(|to| to.matched);
        waiting
            .chain(self.transfers.iter().map(|transfer| transfer.index))
            .chain(
                self.delivered
                    .iter()
                    .map(|peer| peer.index.max(matched(peer).unwrap_or(0))),
            )
            .min()
    }

    /// Forgets peers that have caught up after a snapshot, left, or are silent.
    pub(super) fn tick_delivered(&mut self) {
        let mut delivered = std::mem::take(&mut self.delivered);
        delivered.retain(|peer| {
            let progress = self.node.raft.prs().get(peer.to);
            let is_behind = progress.is_some_and(|progress| progress.matched < peer.goal);
            is_behind && self.is_leader() && self.is_live(peer.to)
        });
        self.delivered = delivered;
    }
}

/// The frame's length, if that is above the limit.
/// Makes appends of at most so many entries and bytes of one, but of one entry at least, each behind the last entry of the one before. A peer
/// that gets them in another order, or not all, answers as it does to appends that raft-rs sent one by one.
fn split_append(mut message: Message, entries_max: usize, bytes_max: usize) -> Vec<Message> {
    let entries: Vec<Entry> = message.take_entries().into();
    let mut parts = Vec::new();
    let mut part: Vec<Entry> = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        let entry_bytes = codec::entry_len_max(&entry);
        let is_full = part.len() >= entries_max || bytes + entry_bytes > bytes_max;
        if let Some(last) = part.last().filter(|_| is_full) {
            let mut full = message.clone();
            (message.index, message.log_term) = (last.index, last.term);
            full.set_entries(std::mem::take(&mut part).into());
            parts.push(full);
            bytes = 0;
        }
        bytes += entry_bytes;
        part.push(entry);
    }
    message.set_entries(part.into());
    parts.push(message);
    parts
}

/// For the mutant that takes equal content for a repeated delivery.
fn content_hash(from: u64, body: &Body) -> u64 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(format!("{from} {body:?}").as_bytes());
    u64::from(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_an_append_follow_each_other() {
        let entry = |index| Entry {
            index,
            term: index / 3,
            ..Default::default()
        };
        for count in 1..=9_usize {
            let entries: Vec<Entry> = (11..).map(entry).take(count).collect();
            let mut message = Message {
                to: 2,
                term: 9,
                index: 10,
                log_term: 3,
                commit: 15,
                ..Default::default()
            };
            message.set_msg_type(MessageType::MsgAppend);
            message.set_entries(entries.clone().into());
            let parts = split_append(message, 4, usize::MAX);
            assert_eq!(parts.len(), count.div_ceil(4));
            let (mut place, mut together) = ((10, 3), Vec::new());
            for part in parts {
                assert_eq!((part.index, part.log_term), place);
                assert_eq!((part.to, part.term, part.commit), (2, 9, 15));
                assert!((1..=4).contains(&part.entries.len()));
                place = part
                    .entries
                    .last()
                    .map_or(place, |last| (last.index, last.term));
                together.extend(part.entries.iter().cloned());
            }
            assert_eq!(together, entries);
        }
    }

    #[test]
    fn a_part_of_several_entries_keeps_to_its_bytes() {
        let payloads = [10, 100, 300, 900, 20, 30, 1000, 1];
        let entries: Vec<Entry> = (11..)
            .zip(payloads)
            .map(|(index, len)| Entry {
                index,
                term: u64::MAX,
                data: vec![1; len].into(),
                ..Default::default()
            })
            .collect();
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        message.set_entries(entries.into());
        let lens: Vec<Vec<usize>> = split_append(message, 4, 600)
            .iter()
            .map(|part| {
                let within = codec::encoded_len(part) <= 600;
                assert!(within || part.entries.len() == 1, "{part:?}");
                part.entries.iter().map(|entry| entry.data.len()).collect()
            })
            .collect();
        assert_eq!(
            lens,
            [
                vec![10, 100, 300],
                vec![900],
                vec![20, 30],
                vec![1000],
                vec![1]
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_is_counted_and_dropped() {
        let config = crate::core::CoreConfig {
            id: 1,
            group: crate::GroupId(0),
            options: crate::RaftOptions::default(),
            seed: 1,
            incarnation: 1,
            session: 1,
            entry_memory: crate::EntryMemory::of_process(),
        };
        let state = crate::core::bootstrap_state(&[1, 2, 3], Bytes::new());
        let mut core: Core<()> = Core::new(config, state).expect("a sound start");
        core.receive_encoded(Bytes::from_static(b"no frame"));
        let stats = core.stats();
        assert_eq!((stats.messages_received, stats.messages_invalid), (1, 1));
    }
}
