//! Snapshots on their way to peers: in parts, with a window, from where the peer has got to.
//!
//! The first part of a transfer goes alone. Its answer says how much the peer has of the very same snapshot, from a
//! transfer that was cut: the next parts begin there.

use super::Core;
use super::snapshots::{Content, SnapshotJob};
use crate::codec::{self, Body, ChunkAck, SnapshotChunk};
use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::Message;
use raft::{SnapshotStatus, StateRole};
use std::ops::Range;

/// Rounds without progress before a transfer is given up.
const ATTEMPTS_MAX: u32 = 4;
/// So many times the patience an attempt waits at most.
const PATIENCE_MAX: usize = 4;

/// A snapshot on its way to a peer.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) to: u64,
    pub(super) index: u64,
    number: u64,
    message: Message,
    content: Content,
    total: u64,
    /// The table of members, encoded.
    members: Bytes,
    crc: u32,
    sent: u64,
    acked: u64,
    /// The peer has answered since the last attempt: it gets as much as the window allows.
    is_answered: bool,
    /// Parts that were sent and not answered.
    unanswered: usize,
    /// The log reads a piece.
    is_reading: bool,
    /// Since the last progress or attempt.
    idle_ticks: usize,
    /// Since the last progress.
    stalled_ticks: usize,
    /// The longest that progress took.
    slowest_ticks: usize,
    attempts: u32,
}

/// A peer that has got a snapshot, and needs the log from there up to what it was then.
#[derive(Debug)]
pub(super) struct Delivered {
    pub(super) to: u64,
    pub(super) index: u64,
    pub(super) goal: u64,
}

/// What became of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Going,
    Done,
    Failed,
}

impl Transfer {
    fn new(number: u64, message: Message, content: Content, members: Bytes) -> Self {
        let (total, crc) = match &content {
            Content::Memory(data) => (data.len() as u64, crc32fast::hash(data)),
            Content::Log(stored) => (stored.bytes, stored.crc),
        };
        Self {
            to: message.to,
            index: message.get_snapshot().get_metadata().index,
            number,
            message,
            content,
            total,
            members,
            crc,
            sent: 0,
            acked: 0,
            is_answered: false,
            unanswered: 0,
            is_reading: false,
            idle_ticks: 0,
            stalled_ticks: 0,
            slowest_ticks: 0,
            attempts: 0,
        }
    }

    /// What the window allows now. An empty snapshot is one empty part.
    fn allowed(&self, chunk_bytes: usize, window: usize) -> Option<Range<u64>> {
        if self.total == 0 {
            return (self.unanswered == 0).then_some(0..0);
        }
        let window = if self.is_answered { window } else { 1 };
        let window_bytes = chunk_bytes.saturating_mul(window) as u64;
        let end = self.acked.saturating_add(window_bytes).min(self.total);
        (self.sent < end).then_some(self.sent..end)
    }

    /// Sends parts that the window allows now, or says what must be read for them.
    fn next_chunks(
        &mut self,
        chunk_bytes: usize,
        window: usize,
        send: impl FnMut(SnapshotChunk),
    ) -> Option<SnapshotJob> {
        if self.is_reading {
            return None;
        }
        let allowed = self.allowed(chunk_bytes, window)?;
        match &self.content {
            Content::Memory(data) => {
                let piece = data.slice(allowed.start as usize..allowed.end as usize);
                self.send(&piece, chunk_bytes, send);
                None
            }
            Content::Log(_) if self.total == 0 => {
                self.send(&Bytes::new(), chunk_bytes, send);
                None
            }
            Content::Log(stored) => {
                self.is_reading = true;
                Some(SnapshotJob::Read {
                    transfer: self.number,
                    data: *stored,
                    offset: allowed.start,
                    bytes: (allowed.end - allowed.start) as usize,
                })
            }
        }
    }

    /// Sends a piece that was read, unless the peer wants another one by now.
    fn piece_read(
        &mut self,
        offset: u64,
        piece: &Bytes,
        chunk_bytes: usize,
        send: impl FnMut(SnapshotChunk),
    ) {
        self.is_reading = false;
        if offset == self.sent {
            self.send(piece, chunk_bytes, send);
        }
    }

    fn send(&mut self, piece: &Bytes, chunk_bytes: usize, mut send: impl FnMut(SnapshotChunk)) {
        let mut start = 0_usize;
        loop {
            let end = start.saturating_add(chunk_bytes).min(piece.len());
            send(SnapshotChunk {
                message: self.message.clone(),
                transfer: self.number,
                total_bytes: self.total,
                offset: self.sent,
                data: piece.slice(start..end),
                crc: self.crc,
                members: self.members.clone(),
            });
            self.sent += (end - start) as u64;
            self.unanswered += 1;
            start = end;
            if start == piece.len() {
                return;
            }
        }
    }

    /// How many bytes of the snapshot have room in a frame of `frame_bytes`, at least 1.
    fn room(&self, frame_bytes: usize) -> usize {
        // The membership is in the message too, and not longer there.
        let head = codec::ENTRY_ROOM_BYTES + 2 * self.members.len();
        frame_bytes.saturating_sub(head).max(1)
    }

    fn acked(&mut self, ack: ChunkAck) -> Progress {
        if ack.transfer != self.number {
            return Progress::Going;
        }
        if ack.refused {
            return Progress::Failed;
        }
        self.unanswered = self.unanswered.saturating_sub(1);
        let received = ack.received;
        if received > self.total {
            return Progress::Going;
        }
        self.is_answered = true;
        if received > self.acked {
            self.slowest_ticks = self.slowest_ticks.max(self.stalled_ticks);
            (self.idle_ticks, self.stalled_ticks, self.attempts) = (0, 0, 0);
            self.acked = received;
            // It has more than was sent to it by this transfer.
            self.sent = self.sent.max(received);
        }
        if received == self.total {
            return Progress::Done;
        }
        if self.unanswered == 0 {
            // All arrived, and some behind a gap: out of order. Those were of no use.
            self.sent = self.acked;
        }
        Progress::Going
    }

    /// Goes back to what was acknowledged if nothing was heard for long. What a slow link has not delivered yet must
    /// not be sent over it again and again: each attempt waits twice as long as the one before, and all twice as long
    /// as progress ever took, up to four times the patience. The peer is not to blame for the time that the log needs.
    fn tick(&mut self, patience_ticks: usize) -> Progress {
        if self.is_reading {
            return Progress::Going;
        }
        self.idle_ticks += 1;
        self.stalled_ticks += 1;
        let wait_ticks = patience_ticks.max(2 * self.slowest_ticks) << self.attempts;
        if self.idle_ticks < wait_ticks.min(PATIENCE_MAX * patience_ticks) {
            return Progress::Going;
        }
        self.attempts += 1;
        if self.attempts > ATTEMPTS_MAX {
            return Progress::Failed;
        }
        (self.idle_ticks, self.sent, self.unanswered) = (0, self.acked, 0);
        self.is_answered = false;
        Progress::Going
    }
}

impl<T> Core<T> {
    pub(super) fn begin_transfer(&mut self, message: Message) {
        let to = message.to;
        let index = message.get_snapshot().get_metadata().index;
        self.end_transfers(|transfer| transfer.to == to);
        let stored = self
            .node
            .store()
            .snapshot()
            .filter(|stored| stored.metadata.index == index && !stored.is_in_machine());
        let stored = stored.map(|stored| {
            let members: Bytes = stored.members.encode_to_vec().into();
            (Content::of(stored), members)
        });
        let Some((content, members)) = stored else {
            // Replaced since Raft asked for it.
            self.node.report_snapshot(to, SnapshotStatus::Failure);
            return;
        };
        self.transfer_count += 1;
        self.transfers.push(Transfer::new(
            self.transfer_count,
            message,
            content,
            members,
        ));
    }

    /// Ends transfers, and what is read for them.
    pub(super) fn end_transfers(&mut self, mut is_over: impl FnMut(&Transfer) -> bool) {
        let jobs = &mut self.out.snapshot_jobs;
        self.transfers.retain(|transfer| {
            let is_over = is_over(transfer);
            if is_over && matches!(transfer.content, Content::Log(_)) {
                let transfer = transfer.number;
                jobs.push(SnapshotJob::EndRead { transfer });
            }
            !is_over
        });
    }

    pub(super) fn receive_ack(&mut self, from: u64, ack: ChunkAck) {
        let Some(place) = self
            .transfers
            .iter()
            .position(|transfer| transfer.to == from)
        else {
            return;
        };
        let progress = self.transfers[place].acked(ack);
        let status = match progress {
            Progress::Going => return self.send_chunks(place),
            Progress::Done => {
                let index = self.transfers[place].index;
                self.delivered.retain(|other| other.to != from);
                self.delivered.push(Delivered {
                    to: from,
                    index,
                    goal: self.node.raft.raft_log.last_index(),
                });
                self.stats.snapshots_sent += 1;
                SnapshotStatus::Finish
            }
            Progress::Failed => SnapshotStatus::Failure,
        };
        self.end_transfers(|transfer| transfer.to == from);
        self.node.report_snapshot(from, status);
    }

    /// Parts of all transfers that their windows allow.
    pub(super) fn send_all_chunks(&mut self) {
        if self.persisted_hard_state.0 != self.node.raft.term {
            return;
        }
        for place in 0..self.transfers.len() {
            self.send_chunks(place);
        }
    }

    /// Bytes of one part for a peer.
    fn chunk_bytes(&mut self, place: usize) -> usize {
        let limit = self.frame_limit(self.transfers[place].to);
        let room = limit.map_or(usize::MAX, |limit| self.transfers[place].room(limit));
        self.options.snapshot_chunk_bytes.min(room)
    }

    fn send_chunks(&mut self, place: usize) {
        let window = self.options.snapshot_window_chunks;
        let chunk_bytes = self.chunk_bytes(place);
        let mut chunks = Vec::new();
        let send = |chunk| chunks.push(chunk);
        let read = self.transfers[place].next_chunks(chunk_bytes, window, send);
        self.out.snapshot_jobs.extend(read);
        self.push_chunks(chunks);
    }

    fn push_chunks(&mut self, chunks: Vec<SnapshotChunk>) {
        for chunk in chunks {
            let to = chunk.message.to;
            let frame = self.frame(to, Body::Chunk(Box::new(chunk)));
            self.out.frames.push(frame);
        }
    }

    pub(super) fn piece_read(&mut self, number: u64, offset: u64, piece: Option<Bytes>) {
        let mut transfers = self.transfers.iter();
        let Some(place) = transfers.position(|transfer| transfer.number == number) else {
            return;
        };
        let Some(piece) = piece else {
            // Another snapshot took its place: Raft asks for that.
            let to = self.transfers[place].to;
            self.end_transfers(|transfer| transfer.to == to);
            self.node.report_snapshot(to, SnapshotStatus::Failure);
            return;
        };
        let chunk_bytes = self.chunk_bytes(place);
        let mut chunks = Vec::new();
        let send = |chunk| chunks.push(chunk);
        self.transfers[place].piece_read(offset, &piece, chunk_bytes, send);
        self.push_chunks(chunks);
    }

    pub(super) fn tick_transfers(&mut self) {
        if self.transfers.is_empty() {
            return;
        }
        let patience = self.options.election_ticks;
        let (mut over, mut failed) = (Vec::new(), Vec::new());
        let raft = &self.node.raft;
        for transfer in &mut self.transfers {
            let progress = raft.prs().get(transfer.to);
            let wanted =
                progress.is_some_and(|progress| progress.state == raft::ProgressState::Snapshot);
            if !wanted || raft.state != StateRole::Leader {
                over.push(transfer.to);
            } else if transfer.tick(patience) == Progress::Failed {
                failed.push(transfer.to);
            }
        }
        self.end_transfers(|transfer| over.contains(&transfer.to) || failed.contains(&transfer.to));
        for peer in failed {
            self.node.report_snapshot(peer, SnapshotStatus::Failure);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::receiving::Incoming;
    use super::super::receiving::tests::{Peer, Source};
    use super::*;
    use proptest::prelude::*;

    pub(in super::super) fn message() -> Message {
        let mut message = Message {
            to: 2,
            term: 3,
            ..Default::default()
        };
        message.mut_snapshot().mut_metadata().index = 5;
        message
    }

    fn data(size: usize) -> Bytes {
        (0..size).map(|place| (place % 251) as u8).collect()
    }

    pub(in super::super) fn transfer(number: u64, data: &Bytes, in_log: bool) -> Transfer {
        let content = match in_log {
            true => Content::Log(crate::log::StoredData {
                number: 1,
                bytes: data.len() as u64,
                crc: crc32fast::hash(data),
            }),
            false => Content::Memory(data.clone()),
        };
        Transfer::new(number, message(), content, Bytes::new())
    }

    /// Chance of a test.
    struct Coin(u64);

    impl Coin {
        fn one_in(&mut self, odds: u64) -> bool {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.is_multiple_of(odds)
        }
    }

    proptest! {
        /// Parts are lost, repeated and reordered, answers too, and the transfer begins anew now and then: in the end
        /// the snapshot is whole, and no more than the window is held at either end.
        #[test]
        fn a_snapshot_survives_a_bad_network(
            size in 0_usize..4000,
            chunk in 1_usize..700,
            window in 1_usize..5,
            chance in any::<u64>(),
            in_log in any::<(bool, bool)>(),
        ) {
            let data = data(size);
            let mut sender = transfer(1, &data, in_log.0);
            let mut source = Source::new(data.clone());
            let mut peer = Peer::new(in_log.1, chunk * window);
            let mut coin = Coin(chance | 1);
            for round in 0..20_000 {
                let mut sent = Vec::new();
                if let Some(job) = sender.next_chunks(chunk, window, |chunk| sent.push(chunk)) {
                    source.take(job, chunk * window);
                }
                if coin.one_in(2) && let Some((offset, piece)) = source.read() {
                    sender.piece_read(offset, &piece, chunk, |chunk| sent.push(chunk));
                }
                if coin.one_in(2) {
                    sent.reverse();
                }
                for chunk in sent {
                    if coin.one_in(5) {
                        continue;
                    }
                    for _ in 0..if coin.one_in(7) { 2 } else { 1 } {
                        peer.receive(chunk.clone());
                    }
                }
                if coin.one_in(2) {
                    peer.write();
                }
                let mut done = false;
                for ack in peer.acks.drain(..) {
                    if !coin.one_in(5) {
                        done |= sender.acked(ack) == Progress::Done;
                    }
                }
                prop_assert!(!done || peer.complete.is_some());
                if peer.complete.is_some() {
                    break;
                }
                if coin.one_in(60) {
                    // Cut: the next transfer has another number.
                    sender = transfer(round + 2, &data, in_log.0);
                    source = Source::new(data.clone());
                }
                // Never given up here: the simulation has that.
                sender.attempts = 0;
                sender.tick(2);
            }
            prop_assert_eq!(peer.complete, Some(data));
        }
    }

    /// The second transfer sends its first part, and then only what the peer does not have.
    #[test]
    fn a_cut_transfer_goes_on_where_it_was() {
        let data = data(1000);
        let mut peer = Peer::new(true, 400);
        let mut sent_bytes = 0;
        for number in 1..=2 {
            let mut sender = transfer(number, &data, false);
            for _ in 0..3 {
                let mut sent = Vec::new();
                sender.next_chunks(100, 4, |chunk| sent.push(chunk));
                for chunk in sent {
                    sent_bytes += chunk.data.len();
                    peer.receive(chunk);
                    peer.write();
                }
                for ack in peer.acks.drain(..) {
                    sender.acked(ack);
                }
                if peer.complete.is_some() {
                    break;
                }
            }
        }
        assert_eq!(peer.complete, Some(data));
        assert_eq!(sent_bytes, 1000 + 100);
    }

    #[test]
    fn too_large_and_damaged_snapshots_are_refused() {
        let whole = Bytes::from(vec![1; 100]);
        let mut sender = transfer(1, &whole, false);
        let mut sent = Vec::new();
        sender.next_chunks(100, 1, |chunk| sent.push(chunk));
        let chunk = sent.remove(0);
        let mut incoming = Incoming::new(1, &chunk, false);
        incoming.take(1, &chunk, usize::MAX);
        assert!(incoming.memory().is_ok());
        let damaged = SnapshotChunk {
            data: Bytes::from(vec![2; 100]),
            ..chunk
        };
        let mut incoming = Incoming::new(1, &damaged, false);
        incoming.take(1, &damaged, usize::MAX);
        assert!(incoming.memory().is_err());
        let refused = ChunkAck {
            transfer: 1,
            received: 0,
            refused: true,
        };
        assert_eq!(sender.acked(refused), Progress::Failed);
    }
}
