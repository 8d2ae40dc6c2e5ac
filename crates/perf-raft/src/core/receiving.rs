//! A snapshot that arrives: put together in memory, or written to the log piece by piece.
//!
//! What has arrived stays when a transfer is cut. A later transfer of the very same snapshot, by place in the log, size
//! and checksum, goes on from there, whoever sends it: the checksum of the whole is looked at in the end.

use super::snapshots::{Content, SnapshotJob};
use super::{Core, validate};
use crate::codec::{ChunkAck, FrameHeader, SnapshotChunk};
use crate::log::StoredData;
use crate::primitive::mutant;
use bytes::{Bytes, BytesMut};
use raft::eraftpb::{Message, MessageType};

/// For so many election timeouts what has arrived is kept for a sender that is silent.
const KEPT_ELECTIONS: u64 = 60;

/// Which snapshot it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    index: u64,
    term: u64,
    total: u64,
    crc: u32,
}

impl Key {
    fn of(chunk: &SnapshotChunk) -> Self {
        let metadata = chunk.message.get_snapshot().get_metadata();
        Self {
            index: metadata.index,
            term: metadata.term,
            total: chunk.total_bytes,
            crc: chunk.crc,
        }
    }
}

/// The one snapshot that may arrive at a time.
#[derive(Debug)]
pub(super) struct Incoming {
    number: u64,
    key: Key,
    /// Of the part that came last.
    message: Message,
    members: Bytes,
    /// Bytes that were taken, without a gap, and those of them that are in their place.
    taken: u64,
    written: u64,
    has_last: bool,
    sink: Sink,
    /// Parts that are answered once they are written: the sender, its transfer, where the part ends.
    answers: Vec<(u64, u64, u64)>,
    /// Since a part was taken.
    idle_ticks: u64,
}

#[derive(Debug)]
enum Sink {
    Memory(BytesMut),
    /// Pieces for the next write, and whether one is under way.
    Log {
        waiting: Vec<Bytes>,
        is_writing: bool,
    },
}

impl Incoming {
    pub(super) fn new(number: u64, chunk: &SnapshotChunk, in_log: bool) -> Self {
        Self {
            number,
            key: Key::of(chunk),
            message: chunk.message.clone(),
            members: chunk.members.clone(),
            taken: 0,
            written: 0,
            has_last: false,
            sink: match in_log {
                true => Sink::Log {
                    waiting: Vec::new(),
                    is_writing: false,
                },
                false => Sink::Memory(BytesMut::new()),
            },
            answers: Vec::new(),
            idle_ticks: 0,
        }
    }

    /// Takes the next part. Of others, and of what is above `room_bytes` that wait for the log, nothing is taken: their
    /// answer says how far this is.
    pub(super) fn take(&mut self, from: u64, chunk: &SnapshotChunk, room_bytes: usize) {
        let len = chunk.data.len() as u64;
        let is_next = chunk.offset == self.taken
            || (mutant::is("chunk_taken_twice") && chunk.offset < self.taken);
        let fits = len <= self.key.total - self.taken && (len > 0 || self.key.total == 0);
        let waiting = self.taken - self.written;
        let has_room = waiting == 0 || waiting + len <= room_bytes as u64;
        let is_taken = is_next && fits && has_room && !self.has_last;
        // A part again, without anything new, is answered at once.
        let end = match is_taken {
            true => self.taken + len,
            false => 0,
        };
        self.answers.push((from, chunk.transfer, end));
        if !is_taken {
            return;
        }
        self.idle_ticks = 0;
        self.taken = end;
        self.has_last = end == self.key.total;
        self.message = chunk.message.clone();
        match &mut self.sink {
            Sink::Memory(received) => {
                received.extend_from_slice(&chunk.data);
                self.written = end;
            }
            Sink::Log { waiting, .. } => waiting.push(chunk.data.clone()),
        }
    }

    /// The next write, if there is something to write and none is under way.
    pub(super) fn next_write(&mut self) -> Option<SnapshotJob> {
        let Sink::Log {
            waiting,
            is_writing,
        } = &mut self.sink
        else {
            return None;
        };
        let is_due = !waiting.is_empty() && !*is_writing;
        if !is_due {
            return None;
        }
        *is_writing = true;
        Some(SnapshotJob::Write {
            number: self.number,
            pieces: std::mem::take(waiting),
            is_last: self.has_last,
        })
    }

    /// The write under way has ended, and with the last one the data is durable.
    pub(super) fn written(&mut self, is_whole: bool) {
        if let Sink::Log {
            waiting,
            is_writing,
        } = &mut self.sink
        {
            let left: usize = waiting.iter().map(Bytes::len).sum();
            *is_writing = false;
            let written = self.taken - left as u64;
            // The last bytes count once they are durable.
            if written < self.key.total || is_whole {
                self.written = written;
            }
        }
    }

    /// Answers to parts that are in their place. The last part's comes with the end.
    fn answers(&mut self) -> Vec<(u64, ChunkAck)> {
        let (written, is_whole) = (self.written, self.is_whole());
        let due = |(_, _, end): &mut (u64, u64, u64)| *end <= written && !is_whole;
        let due = self.answers.extract_if(.., due);
        due.map(|(to, transfer, _)| (to, ack(transfer, written)))
            .collect()
    }

    fn is_whole(&self) -> bool {
        self.has_last && self.written == self.key.total
    }

    /// All data, where it is in memory and sound.
    pub(super) fn memory(&mut self) -> Result<Bytes, Damaged> {
        match &mut self.sink {
            Sink::Memory(received) if crc32fast::hash(received) == self.key.crc => {
                Ok(std::mem::take(received).freeze())
            }
            _ => Err(Damaged),
        }
    }

    /// Whether data that the log has is what was announced.
    fn is_sound(&self, stored: StoredData) -> bool {
        (stored.bytes, stored.crc) == (self.key.total, self.key.crc)
    }
}

/// The bytes are not those that were announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damaged;

fn ack(transfer: u64, received: u64) -> ChunkAck {
    ChunkAck {
        transfer,
        received,
        refused: false,
    }
}

impl<T> Core<T> {
    pub(super) fn receive_chunk(&mut self, header: FrameHeader, mut chunk: SnapshotChunk) {
        let from = header.from;
        let sound = chunk.message.from == from
            && chunk.message.get_msg_type() == MessageType::MsgSnapshot
            && validate::check(&chunk.message, self.id).is_ok();
        if !sound {
            self.stats.messages_invalid += 1;
            return;
        }
        chunk.message.to = self.id;
        self.note_message(&chunk.message);
        let key = Key::of(&chunk);
        if self.stops_at_snapshot(key.index, key.term, chunk.message.term) {
            return;
        }
        if self.is_useless(key.index, key.term) || chunk.message.term < self.node.raft.term {
            // Of no use: Raft says how far this node is.
            let _ = self.node.step(chunk.message);
            self.draw_timeout();
            self.send_ack(from, ack(chunk.transfer, key.total));
            return;
        }
        if key.total > self.options.snapshot_bytes_max as u64 {
            self.refuse_chunk(from, chunk.transfer);
            return;
        }
        if self.streams && self.restoring.is_some() {
            // The one before is read: it must not be replaced. The sender tries again.
            return;
        }
        // It is on its way.
        self.forked_since = None;
        let arriving = self.incoming.as_ref();
        let is_late = arriving
            .is_some_and(|now| key.index < now.key.index && chunk.message.term <= now.message.term);
        if is_late {
            // Of an earlier snapshot of the same leader, which takes no place of a newer one's.
            return;
        }
        if arriving.is_none_or(|now| now.key != key) {
            if chunk.offset != 0 {
                self.send_ack(from, ack(chunk.transfer, 0));
                return;
            }
            self.end_incoming();
            self.incoming_count += 1;
            let incoming = Incoming::new(self.incoming_count, &chunk, self.streams);
            self.incoming = Some(Box::new(incoming));
        }
        let options = &self.options;
        let room_bytes = options
            .snapshot_chunk_bytes
            .saturating_mul(options.snapshot_window_chunks);
        if let Some(incoming) = &mut self.incoming {
            incoming.take(from, &chunk, room_bytes);
            self.go_on_with_incoming(None);
        }
    }

    pub(super) fn pieces_written(&mut self, number: u64, stored: Option<StoredData>) {
        match &mut self.incoming {
            Some(incoming) if incoming.number == number => {
                incoming.written(stored.is_some());
                self.go_on_with_incoming(stored);
            }
            _ => {
                if let Some(stored) = stored {
                    self.discard(&Content::Log(stored));
                }
            }
        }
    }

    /// Writes and answers what can be, and gives Raft what is whole.
    fn go_on_with_incoming(&mut self, stored: Option<StoredData>) {
        let Some(incoming) = &mut self.incoming else {
            return;
        };
        let answers = incoming.answers();
        self.out.snapshot_jobs.extend(incoming.next_write());
        let whole = match (&incoming.sink, stored) {
            (Sink::Log { .. }, Some(stored)) if incoming.is_sound(stored) => {
                Some(Ok(Content::Log(stored)))
            }
            (_, Some(stored)) => {
                self.out.snapshot_jobs.push(SnapshotJob::Discard(stored));
                Some(Err(Damaged))
            }
            // Also an empty one is whole once the log has it.
            (Sink::Log { .. }, None) if !mutant::is("empty_stream_is_damaged") => None,
            (Sink::Log { .. }, None) => incoming.is_whole().then_some(Err(Damaged)),
            (Sink::Memory(_), None) => {
                let is_whole = incoming.is_whole();
                is_whole.then(|| incoming.memory().map(Content::Memory))
            }
        };
        for (to, ack) in answers {
            self.send_ack(to, ack);
        }
        let Some(whole) = whole else {
            return;
        };
        let Some(incoming) = self.incoming.take() else {
            return;
        };
        for &(to, transfer, _) in &incoming.answers {
            match &whole {
                Ok(_) => self.send_ack(to, ack(transfer, incoming.key.total)),
                Err(Damaged) => self.refuse_chunk(to, transfer),
            }
        }
        match whole {
            Ok(content) => self.install(incoming.message, &incoming.members, content),
            Err(Damaged) => self.stats.snapshots_damaged += 1,
        }
    }

    fn refuse_chunk(&mut self, to: u64, transfer: u64) {
        let refusal = ChunkAck {
            transfer,
            received: 0,
            refused: true,
        };
        self.send_ack(to, refusal);
    }

    /// What has arrived goes.
    pub(super) fn end_incoming(&mut self) {
        if let Some(incoming) = self.incoming.take()
            && let Sink::Log { .. } = incoming.sink
        {
            let number = incoming.number;
            self.out
                .snapshot_jobs
                .push(SnapshotJob::EndWrite { number });
        }
    }

    /// What is of no use any more, or was not sent on for long, is not kept.
    pub(super) fn tick_incoming(&mut self) {
        let Some(incoming) = &mut self.incoming else {
            return;
        };
        // The sender is not to blame for the time that the log needs.
        let is_writing = matches!(
            &incoming.sink,
            Sink::Log {
                is_writing: true,
                ..
            }
        );
        incoming.idle_ticks += u64::from(!is_writing);
        let Key { index, term, .. } = incoming.key;
        let is_late = incoming.idle_ticks > KEPT_ELECTIONS * self.options.election_ticks as u64;
        if is_late || self.is_useless(index, term) {
            self.end_incoming();
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A peer that takes a snapshot, to memory or to a log that writes when it is told to.
    pub(in super::super) struct Peer {
        incoming: Option<Incoming>,
        in_log: bool,
        room_bytes: usize,
        under_way: Option<(Vec<Bytes>, bool)>,
        log: Vec<u8>,
        pub(in super::super) acks: Vec<ChunkAck>,
        pub(in super::super) complete: Option<Bytes>,
    }

    impl Peer {
        pub(in super::super) fn new(in_log: bool, room_bytes: usize) -> Self {
            Self {
                incoming: None,
                in_log,
                room_bytes,
                under_way: None,
                log: Vec::new(),
                acks: Vec::new(),
                complete: None,
            }
        }

        pub(in super::super) fn receive(&mut self, chunk: SnapshotChunk) {
            if self.complete.is_some() {
                return;
            }
            if self.incoming.is_none() && chunk.offset != 0 {
                self.acks.push(ack(chunk.transfer, 0));
                return;
            }
            let in_log = self.in_log;
            let new = || Incoming::new(1, &chunk, in_log);
            let incoming = self.incoming.get_or_insert_with(new);
            incoming.take(1, &chunk, self.room_bytes);
            let held = incoming.taken - incoming.written;
            assert!(held <= self.room_bytes as u64, "{held} bytes are held");
            self.go_on(false);
        }

        /// The log has done what it was told to.
        pub(in super::super) fn write(&mut self) {
            if let Some((pieces, is_last)) = self.under_way.take() {
                self.log.extend(pieces.concat());
                let incoming = self.incoming.as_mut().expect("it is there");
                incoming.written(is_last);
                self.go_on(is_last);
            }
        }

        fn go_on(&mut self, is_stored: bool) {
            let incoming = self.incoming.as_mut().expect("it is there");
            self.acks
                .extend(incoming.answers().into_iter().map(|(_, ack)| ack));
            if let Some(SnapshotJob::Write {
                pieces, is_last, ..
            }) = incoming.next_write()
            {
                assert!(self.under_way.is_none(), "one at a time");
                self.under_way = Some((pieces, is_last));
            }
            if is_stored || (incoming.is_whole() && !self.in_log) {
                let whole = match self.in_log {
                    true => self.log.clone().into(),
                    false => incoming.memory().expect("it is sound"),
                };
                let total = incoming.key.total;
                let last = incoming.answers.drain(..);
                self.acks
                    .extend(last.map(|(_, transfer, _)| ack(transfer, total)));
                self.complete = Some(whole);
            }
        }
    }

    /// The log of a sender, which reads when it is told to.
    pub(in super::super) struct Source {
        data: Bytes,
        asked: Option<(u64, usize)>,
    }

    impl Source {
        pub(in super::super) fn new(data: Bytes) -> Self {
            Self { data, asked: None }
        }

        pub(in super::super) fn take(&mut self, job: SnapshotJob, room_bytes: usize) {
            let SnapshotJob::Read { offset, bytes, .. } = job else {
                panic!("{job:?}");
            };
            assert!(bytes <= room_bytes && self.asked.is_none());
            self.asked = Some((offset, bytes));
        }

        pub(in super::super) fn read(&mut self) -> Option<(u64, Bytes)> {
            let (offset, bytes) = self.asked.take()?;
            let start = offset as usize;
            Some((offset, self.data.slice(start..start + bytes)))
        }
    }
}
