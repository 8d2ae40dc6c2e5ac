//! A network that loses, repeats, delays and reorders.

use super::{Event, MS, World};
use bytes::Bytes;
use perf_raft::codec::{Body, Frame};
use raft::eraftpb::MessageType;
use std::collections::BTreeSet;

/// All snapshots to one node go over a link that needs about as long for one as the clients need to fill the log.
pub(super) struct SlowLink {
    pub(super) to: u64,
    pub(super) byte_ns: u64,
    pub(super) free_at: u64,
    /// Transfers since the world healed, by sender and number.
    pub(super) transfers: BTreeSet<(u64, u64)>,
}

fn message_type(frame: &Bytes) -> Option<MessageType> {
    match Frame::decode(frame.clone()).ok()?.body {
        Body::Raft(message) => Some(message.get_msg_type()),
        _ => None,
    }
}

impl World {
    pub(super) fn send(&mut self, from: u64, to: u64, frame: Bytes) {
        if !self.nodes.contains_key(&to) {
            return;
        }
        if self.cut.contains(&(from, to)) {
            self.lose(from, to, frame);
            return;
        }
        let copies = if self.calm {
            1
        } else if self.random.one_in(20) {
            0
        } else if self.random.one_in(15) {
            self.coverage.duplicates += 1;
            2
        } else {
            1
        };
        if copies == 0 {
            self.lose(from, to, frame);
            return;
        }
        if self.has_late_frames && !self.calm && self.random.one_in(40) {
            self.coverage.late_frames += 1;
            let delay = self.random.below(4_000 * MS);
            self.at(delay, Event::Deliver(to, frame.clone()));
        }
        for _ in 0..copies {
            let slow = !self.calm && self.random.one_in(25);
            let delay = if slow {
                self.random.below(250 * MS)
            } else {
                200_000 + self.random.below(3 * MS)
            };
            let delay = delay + self.link_delay(to, &frame) + self.word_delay(from, to, &frame);
            self.at(delay, Event::Deliver(to, frame.clone()));
        }
    }

    /// The word to campaign is often late, so late that its sender has given up and may have its lease back. Then the sender is held up just
    /// as the word arrives, and goes on with a read by its lease.
    pub(super) fn word_delay(&mut self, from: u64, to: u64, frame: &Bytes) -> u64 {
        let is_word = message_type(frame) == Some(MessageType::MsgTimeoutNow);
        if !is_word || self.calm || (!self.hands_over_often && self.random.one_in(2)) {
            return 0;
        }
        self.coverage.late_words += 1;
        // Before the next heartbeat, or long after it.
        let longest = if self.random.one_in(2) { 20 } else { 1_000 };
        let delay = self.random.below(longest * MS);
        let held_up = (20 + self.random.below(40)) * MS;
        self.at(delay, Event::HeldUp(from, held_up));
        self.at(delay + held_up, Event::Woken(from));
        // Just before the word, a heartbeat comes that a former leader sent.
        let late = self.lost_heartbeats.iter();
        let late = late.filter(|((sender, receiver), _)| *sender != from && *receiver == to);
        for heartbeat in late.map(|(_, frame)| frame.clone()).collect::<Vec<_>>() {
            self.coverage.late_heartbeats += 1;
            let early = self.random.below(2 * MS).min(delay);
            self.at(delay - early, Event::Deliver(to, heartbeat));
        }
        delay
    }

    pub(super) fn lose(&mut self, from: u64, to: u64, frame: Bytes) {
        if message_type(&frame) == Some(MessageType::MsgHeartbeat) {
            self.lost_heartbeats.insert((from, to), frame);
        }
    }

    /// What the slow link takes longer for a part of a snapshot.
    pub(super) fn link_delay(&mut self, to: u64, frame: &Bytes) -> u64 {
        let Some(link) = self.slow_link.as_mut().filter(|link| link.to == to) else {
            return 0;
        };
        let Ok(Frame {
            header,
            body: Body::Chunk(chunk),
        }) = Frame::decode(frame.clone())
        else {
            return 0;
        };
        self.coverage.slow_snapshots += u64::from(chunk.offset == 0);
        if self.calm {
            link.transfers.insert((header.from, chunk.transfer));
        }
        link.free_at = link.free_at.max(self.now) + link.byte_ns * chunk.data.len() as u64;
        link.free_at - self.now
    }

    pub(super) fn deliver(&mut self, id: u64, bytes: Bytes) {
        if self.deliver_to_host(id, &bytes) || self.nodes[&id].core.is_none() {
            return;
        }
        let Ok(frame) = Frame::decode(bytes) else {
            self.fail("a frame does not come back");
            return;
        };
        self.with_core(id, |core, node| {
            let class = frame.body.class();
            // At the bound it is lost, as in the runtime.
            let _ = node.inbound.push(class, 100, frame);
            while let Some(frame) = node.inbound.pop() {
                core.receive(frame);
            }
        });
    }
}
