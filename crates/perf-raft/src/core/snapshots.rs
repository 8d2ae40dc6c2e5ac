//! Snapshots on their way: sent in parts with a window, put together on arrival.

use crate::codec::{self, ChunkAck, SnapshotChunk};
use bytes::{Bytes, BytesMut};
use raft::eraftpb::Message;

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
    data: Bytes,
    /// The table of members, encoded.
    members: Bytes,
    crc: u32,
    sent: usize,
    acked: usize,
    /// Parts that were sent and not answered.
    unanswered: usize,
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
    pub(super) fn new(number: u64, message: Message, data: Bytes, members: Bytes) -> Self {
        Self {
            to: message.to,
            index: message.get_snapshot().get_metadata().index,
            number,
            crc: crc32fast::hash(&data),
            message,
            data,
            members,
            sent: 0,
            acked: 0,
            unanswered: 0,
            idle_ticks: 0,
            stalled_ticks: 0,
            slowest_ticks: 0,
            attempts: 0,
        }
    }

    /// Parts that the window allows now. An empty snapshot is one empty part.
    pub(super) fn next_chunks(
        &mut self,
        chunk_bytes: usize,
        window: usize,
        mut send: impl FnMut(SnapshotChunk),
    ) {
        let limit = self
            .acked
            .saturating_add(chunk_bytes.saturating_mul(window));
        loop {
            let end = self.sent.saturating_add(chunk_bytes).min(self.data.len());
            let first = self.sent == 0 && self.data.is_empty() && self.idle_ticks == 0;
            if !first && (self.sent >= self.data.len() || self.sent >= limit) {
                return;
            }
            send(SnapshotChunk {
                message: self.message.clone(),
                transfer: self.number,
                total_bytes: self.data.len() as u64,
                offset: self.sent as u64,
                data: self.data.slice(self.sent..end),
                crc: self.crc,
                members: self.members.clone(),
            });
            self.sent = end;
            self.unanswered += 1;
            if first {
                return;
            }
        }
    }

    /// How many bytes of the snapshot have room in a frame of `frame_bytes`, at least 1.
    pub(super) fn room(&self, frame_bytes: usize) -> usize {
        // The membership is in the message too, and not longer there.
        let head = codec::ENTRY_ROOM_BYTES + 2 * self.members.len();
        frame_bytes.saturating_sub(head).max(1)
    }

    pub(super) fn acked(&mut self, ack: ChunkAck) -> Progress {
        if ack.transfer != self.number {
            return Progress::Going;
        }
        if ack.refused {
            return Progress::Failed;
        }
        self.unanswered = self.unanswered.saturating_sub(1);
        let received = usize::try_from(ack.received).unwrap_or(usize::MAX);
        if received > self.data.len() || received > self.sent {
            return Progress::Going;
        }
        if received > self.acked {
            self.slowest_ticks = self.slowest_ticks.max(self.stalled_ticks);
            (self.idle_ticks, self.stalled_ticks, self.attempts) = (0, 0, 0);
            self.acked = received;
        }
        if received == self.data.len() {
            return Progress::Done;
        }
        if self.unanswered == 0 {
            // All arrived, and some behind a gap: out of order. Those were of no use.
            self.sent = self.acked;
        }
        Progress::Going
    }

    /// Goes back to what was acknowledged if nothing was heard for long. What a slow link has not delivered yet must not be sent over it again and
    /// again: each attempt waits twice as long as the one before, and all twice as long as progress ever took, up to four times the patience.
    pub(super) fn tick(&mut self, patience_ticks: usize) -> Progress {
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
        Progress::Going
    }
}

/// A snapshot that is arriving.
#[derive(Debug)]
pub(super) struct Assembly {
    from: u64,
    session: u64,
    number: u64,
    total: usize,
    crc: u32,
    received: BytesMut,
}

/// What to answer a part.
#[derive(Debug)]
pub(super) struct Assembled {
    pub(super) ack: ChunkAck,
    /// The whole snapshot, when this part completed it.
    pub(super) complete: Option<(Message, Bytes)>,
}

impl Assembly {
    /// Takes a part. `slot` holds the one snapshot that may arrive at a time; a part of a newer transfer takes its place.
    /// Memory grows as parts arrive, up to `bytes_max`.
    pub(super) fn take(
        slot: &mut Option<Self>,
        from: u64,
        session: u64,
        chunk: SnapshotChunk,
        bytes_max: usize,
    ) -> Assembled {
        let answer = |received: usize, refused| Assembled {
            ack: ChunkAck {
                transfer: chunk.transfer,
                received: received as u64,
                refused,
            },
            complete: None,
        };
        let total = usize::try_from(chunk.total_bytes).unwrap_or(usize::MAX);
        if total > bytes_max {
            return answer(0, true);
        }
        let same = |assembly: &Self| {
            (assembly.from, assembly.session, assembly.number) == (from, session, chunk.transfer)
        };
        if !slot.as_ref().is_some_and(same) {
            if chunk.offset != 0 {
                return answer(0, false);
            }
            *slot = Some(Self {
                from,
                session,
                number: chunk.transfer,
                total,
                crc: chunk.crc,
                received: BytesMut::new(),
            });
        }
        let Some(assembly) = slot.as_mut() else {
            return answer(0, false);
        };
        let fits = assembly.received.len() as u64 == chunk.offset
            && chunk.data.len() <= assembly.total - assembly.received.len();
        if fits {
            assembly.received.extend_from_slice(&chunk.data);
        }
        let mut answered = answer(assembly.received.len(), false);
        if assembly.received.len() == assembly.total {
            let sound = crc32fast::hash(&assembly.received) == assembly.crc;
            let whole = slot.take();
            if sound {
                let data = whole.map_or_else(Bytes::new, |assembly| assembly.received.freeze());
                answered.complete = Some((chunk.message, data));
            } else {
                answered.ack.refused = true;
            }
        }
        answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message() -> Message {
        let mut message = Message {
            to: 2,
            ..Default::default()
        };
        message.mut_snapshot().mut_metadata().index = 5;
        message
    }

    proptest! {
        /// Parts are lost, repeated and reordered, answers too: in the end the snapshot is whole.
        #[test]
        fn a_snapshot_survives_a_bad_network(size in 0_usize..4000, chunk in 1_usize..700, window in 1_usize..5, chance in any::<u64>()) {
            let data: Bytes = (0..size).map(|place| (place % 251) as u8).collect();
            let mut transfer = Transfer::new(1, message(), data.clone(), Bytes::new());
            let mut slot = None;
            let mut random = chance | 1;
            let mut coin = |odds: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random.is_multiple_of(odds)
            };
            let mut complete = None;
            for _ in 0..20_000 {
                let mut sent = Vec::new();
                transfer.next_chunks(chunk, window, |chunk| sent.push(chunk));
                if coin(2) {
                    sent.reverse();
                }
                let mut done = false;
                for chunk in sent {
                    if coin(5) {
                        continue;
                    }
                    let copies = if coin(7) { 2 } else { 1 };
                    for _ in 0..copies {
                        if complete.is_some() {
                            break;
                        }
                        let answer = Assembly::take(&mut slot, 1, 9, chunk.clone(), 1 << 20);
                        if let Some((_, bytes)) = answer.complete {
                            complete = Some(bytes);
                        }
                        if !coin(5) {
                            done |= transfer.acked(answer.ack) == Progress::Done;
                        }
                    }
                }
                if done || complete.is_some() {
                    break;
                }
                // Never given up here: the simulation has that.
                transfer.attempts = 0;
                transfer.tick(2);
            }
            prop_assert_eq!(complete, Some(data));
        }
    }

    #[test]
    fn too_large_and_damaged_snapshots_are_refused() {
        let mut slot = None;
        let mut transfer = Transfer::new(1, message(), Bytes::from(vec![1; 100]), Bytes::new());
        let mut sent = Vec::new();
        transfer.next_chunks(100, 1, |chunk| sent.push(chunk));
        let chunk = sent.remove(0);
        assert!(
            Assembly::take(&mut slot, 1, 1, chunk.clone(), 99)
                .ack
                .refused
        );
        let damaged = SnapshotChunk {
            data: Bytes::from(vec![2; 100]),
            ..chunk
        };
        let answer = Assembly::take(&mut slot, 1, 1, damaged, 100);
        assert!(answer.ack.refused && answer.complete.is_none());
        assert_eq!(transfer.acked(answer.ack), Progress::Failed);
    }
}
